"""Incidence of entries and tokens: each row and column of a tensor, and the neurons that it belongs to.

An entry is one index of a tensor's output or input axis. A token is one index of an atom. An entry of a
plain axis has one token; an entry of a flattened axis C x H x W has one in C, one in H and one in W.
Two tensors that share an atom meet in its tokens: that is how a layer hears of its neighbours.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nfopt.errors import PermutationSpecError
from nfopt.symmetry import Atom, Axis, PermutationSpec, Prod, TensorAxes

Side: TypeAlias = Literal["out", "in"]


@dataclass(frozen=True)
class MatrixLayout:
    """How a tensor is read as a stack of matrices: output dimensions, input dimensions, the rest.

    A tensor without output dimensions is read as a vector along its longest dimension.

    Attributes:
        out_dims: dimensions that index outputs (rows).
        in_dims: dimensions that index inputs (columns).
        rest: dimensions along which row and column statistics are pooled (kernel positions).
        shape: shape of the tensor.
    """

    out_dims: tuple[int, ...]
    in_dims: tuple[int, ...]
    rest: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, entry: TensorAxes) -> "MatrixLayout":
        """Return the layout of a tensor with the given axes."""
        shape = entry.shape
        dims = entry.dims or ("other",) * len(shape)
        out_dims = tuple(d for d, role in enumerate(dims) if role == "out" and shape[d] > 1)
        in_dims = tuple(d for d, role in enumerate(dims) if role == "in" and shape[d] > 1)
        if not out_dims and shape:
            longest = max(
                (d for d in range(len(shape)) if d not in in_dims), key=lambda d: shape[d], default=0
            )
            out_dims = (longest,)
            in_dims = tuple(d for d in in_dims if d != longest)
        rest = tuple(d for d in range(len(shape)) if d not in out_dims and d not in in_dims)
        return cls(out_dims, in_dims, rest, shape)

    @property
    def out_size(self) -> int:
        """Number of rows."""
        return prod(self.shape[d] for d in self.out_dims)

    @property
    def in_size(self) -> int:
        """Number of columns."""
        return prod(self.shape[d] for d in self.in_dims)

    @property
    def rest_size(self) -> int:
        """Number of kernel positions."""
        return prod(self.shape[d] for d in self.rest)

    @property
    def order(self) -> tuple[int, ...]:
        """Dimensions in the order rows, columns, rest."""
        return self.out_dims + self.in_dims + self.rest

    def to_matrix(self, tensor: Float[Tensor, "..."]) -> Float[Tensor, "*batch out in rest"]:
        """View `tensor` as [rows, columns, kernel positions], behind any leading dimensions."""
        batch = tensor.shape[: tensor.dim() - len(self.shape)]
        order = [*range(len(batch)), *(len(batch) + d for d in self.order)]
        return tensor.permute(order).reshape(*batch, self.out_size, self.in_size, self.rest_size)

    def from_matrix(self, matrix: Float[Tensor, "*batch out in rest"]) -> Float[Tensor, "..."]:
        """Undo `to_matrix`."""
        batch = matrix.shape[:-3]
        inverse = [*range(len(batch)), *(len(batch) + self.order.index(d) for d in range(len(self.shape)))]
        return matrix.reshape((*batch, *(self.shape[d] for d in self.order))).permute(inverse)


@dataclass(frozen=True, eq=False)
class Incidence:
    """The entries and tokens of a set of tensors, as index tensors.

    Attributes:
        names: the tensors, in order.
        layouts: the matrix layout of each.
        slices: for each tensor and side, the range of its entries.
        entry_tensor: [entries] position in `names` of the tensor that an entry belongs to.
        entry_side: [entries] 0 for an output entry, 1 for an input entry.
        edge_entry: [edges] the entry of each (entry, token) pair.
        edge_token: [edges] its token.
        token_count: number of tokens.
    """

    names: tuple[str, ...]
    layouts: tuple[MatrixLayout, ...]
    slices: dict[tuple[str, Side], slice]
    entry_tensor: Int[Tensor, " entries"]
    entry_side: Int[Tensor, " entries"]
    edge_entry: Int[Tensor, " edges"]
    edge_token: Int[Tensor, " edges"]
    token_count: int

    @property
    def entry_count(self) -> int:
        """Number of entries."""
        return len(self.entry_tensor)

    @cached_property
    def token_degree(self) -> Int[Tensor, "tokens 1"]:
        """Number of entries that hold each token."""
        return torch.bincount(self.edge_token, minlength=self.token_count)[:, None]

    @cached_property
    def entry_degree(self) -> Int[Tensor, "entries 1"]:
        """Number of tokens that each entry holds, at least 1 (an entry of a size-1 axis has none)."""
        return torch.bincount(self.edge_entry, minlength=self.entry_count).clamp(min=1)[:, None]

    @cached_property
    def entry_pool(self) -> Int[Tensor, " entries"]:
        """Position of an entry's (tensor, side) pair: 2 * tensor + side."""
        return 2 * self.entry_tensor + self.entry_side

    @cached_property
    def pool_degree(self) -> Int[Tensor, "pools 1"]:
        """Number of entries of each (tensor, side) pair, at least 1."""
        return torch.bincount(self.entry_pool, minlength=2 * len(self.names)).clamp(min=1)[:, None]

    def to(self, device: torch.device) -> "Incidence":
        """Return the same incidence with its index tensors on `device`."""
        moved = {
            n: getattr(self, n).to(device) for n in ("entry_tensor", "entry_side", "edge_entry", "edge_token")
        }
        return replace(self, **moved)


def build_incidence(spec: PermutationSpec, names: Iterable[str] | None = None) -> Incidence:
    """Compile the incidence of the tensors `names` of `spec` (default: all but the statistics).

    Raises:
        PermutationSpecError: the spec has no tensor of one of the names.
    """
    chosen = (
        tuple(n for n, e in spec.tensors.items() if e.role != "statistic") if names is None else tuple(names)
    )
    first_token: dict[str, int] = {}
    token_count = 0
    layouts: list[MatrixLayout] = []
    slices: dict[tuple[str, Side], slice] = {}
    entry_tensor: list[Tensor] = []
    entry_side: list[Tensor] = []
    edge_entry: list[Tensor] = []
    edge_token: list[Tensor] = []
    start = 0
    for position, name in enumerate(chosen):
        entry = spec.tensors.get(spec.aliases.get(name, name))
        if entry is None:
            raise PermutationSpecError(f"the spec has no tensor {name!r}. Was it traced from another model?")
        layout = MatrixLayout.of(entry)
        layouts.append(layout)
        sides: tuple[tuple[Side, tuple[int, ...]], ...] = (("out", layout.out_dims), ("in", layout.in_dims))
        for side, dims in sides:
            axis = Prod(tuple(entry.axes[d] for d in dims))
            count = axis.size if dims else (1 if side == "out" else 0)
            slices[name, side] = slice(start, start + count)
            entry_tensor.append(torch.full((count,), position))
            entry_side.append(torch.full((count,), 0 if side == "out" else 1))
            for offset, atom, index in _atom_indices(axis):
                if atom.name not in first_token:
                    first_token[atom.name] = token_count
                    token_count += atom.size
                edge_entry.append(start + offset)
                edge_token.append(first_token[atom.name] + index)
            start += count
    empty = [torch.zeros(0, dtype=torch.long)]
    return Incidence(
        chosen,
        tuple(layouts),
        slices,
        torch.cat(entry_tensor or empty),
        torch.cat(entry_side or empty),
        torch.cat(edge_entry or empty),
        torch.cat(edge_token or empty),
        token_count,
    )


def _atom_indices(axis: Axis) -> list[tuple[Tensor, Atom, Tensor]]:
    """For each occurrence of an atom in `axis`: positions along the axis, the atom, its index at each."""
    if isinstance(axis, Atom):
        every = torch.arange(axis.size)
        return [(every, axis, every)] if axis.size > 1 else []
    found: list[tuple[Tensor, Atom, Tensor]] = []
    if isinstance(axis, Prod):
        for i, factor in enumerate(axis.factors):
            before = prod(f.size for f in axis.factors[:i])
            after = prod(f.size for f in axis.factors[i + 1 :])
            for offset, atom, index in _atom_indices(factor):
                place = torch.arange(before)[:, None, None] * factor.size + offset[None, :, None]
                place = (place * after + torch.arange(after)).flatten()
                found.append((place, atom, index[None, :, None].expand(before, -1, after).flatten()))
        return found
    start = 0
    for block in axis.blocks:
        found.extend((offset + start, atom, index) for offset, atom, index in _atom_indices(block))
        start += block.size
    return found
