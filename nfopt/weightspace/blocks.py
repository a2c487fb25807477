"""Block normal form: a spec's tensors cut and reshaped so that every dimension is exactly one atom.

A concatenated axis `Sum((A, B))` is cut at its boundary, a flattened axis `Prod((A, B))` becomes two
dimensions. What is left are blocks [*batch, n_1, ..., n_d, channels] whose dimensions are permuted each by
one group, so that an equivariant layer needs no knowledge of concatenation or flattening.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import prod

from jaxtyping import Shaped
from torch import Tensor

from nfopt.errors import PermutationSpecError
from nfopt.symmetry.axes import Atom, Axis, atoms_of
from nfopt.symmetry.spec import DimRole, PermutationSpec, Role, TensorAxes
from nfopt.weightspace.cuts import cut, join, pieces


@dataclass(frozen=True, slots=True)
class BlockDim:
    """One dimension of a block: one atom.

    Attributes:
        atom: name of the atom.
        size: number of its indices.
        fixed: True when the atom must not be permuted, so that its indices have an order.
        tensor_dim: the dimension of the tensor that it was cut from.
        role: what that dimension indexes.
        ordinal: number of earlier dimensions of the block with the same role.
    """

    atom: str
    size: int
    fixed: bool
    tensor_dim: int
    role: DimRole
    ordinal: int


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a tensor.

    Attributes:
        tensor: name of the tensor.
        index: position among the tensor's blocks, in row-major order of the cuts.
        dims: its dimensions, in the tensor's order.
        role: role of the tensor.
        depth: depth of the tensor, from 0 (first) to 1 (last).
        used: False when the model never reads the tensor.
        fan_in: number of weights of the whole tensor that feed one output (inputs x kernel positions).
        fan_out: number of outputs of the whole tensor.
        starts: for each tensor dimension where along it the block begins, from 0 to 1.
    """

    tensor: str
    index: int
    dims: tuple[BlockDim, ...]
    role: Role
    depth: float
    used: bool
    fan_in: int
    fan_out: int
    starts: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions, without batch and channels."""
        return tuple(dim.size for dim in self.dims)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def repeats(self) -> tuple[tuple[int, int], ...]:
        """Pairs of positions that hold the same atom: the block has a diagonal there."""
        pairs = combinations(range(len(self.dims)), 2)
        return tuple((p, q) for p, q in pairs if self.dims[p].atom == self.dims[q].atom)

    def __str__(self) -> str:
        shape = ", ".join(f"{dim.atom}:{dim.size}" for dim in self.dims)
        return f"{self.tensor}#{self.index} ({self.role}) [{shape}]"


@dataclass(frozen=True)
class BlockPlan:
    """How the tensors of a spec are cut into blocks. A value; `block_plan` makes it and caches it per spec.

    Attributes:
        axes: the axis terms of each tensor by name, in the spec's order.
        blocks: the blocks of all tensors, tensor after tensor.
        fixed: names of the atoms that must not be permuted.
        aliases: other names of tied tensors, mapped to their name in `axes`.
    """

    axes: Mapping[str, tuple[Axis, ...]]
    blocks: tuple[Block, ...]
    fixed: frozenset[str]
    aliases: Mapping[str, str]

    @cached_property
    def atoms(self) -> dict[str, Atom]:
        """Every atom of the blocks by name, in the order of first occurrence."""
        found: dict[str, Atom] = {}
        for block in self.blocks:
            for dim in block.dims:
                found.setdefault(dim.atom, Atom(dim.atom, dim.size))
        return found

    @cached_property
    def offsets(self) -> dict[str, int]:
        """For each atom the position of its first index in a table of all atoms' indices."""
        starts, position = {}, 0
        for name, atom in self.atoms.items():
            starts[name] = position
            position += atom.size
        return starts

    @property
    def token_count(self) -> int:
        """Number of indices of all atoms: the height of a table with one row per neuron."""
        return sum(atom.size for atom in self.atoms.values())

    @cached_property
    def occurrences(self) -> dict[str, tuple[tuple[int, int], ...]]:
        """For each atom the (position in `blocks`, dimension of the block) pairs where it occurs."""
        places: dict[str, list[tuple[int, int]]] = {name: [] for name in self.atoms}
        for b, block in enumerate(self.blocks):
            for d, dim in enumerate(block.dims):
                places[dim.atom].append((b, d))
        return {name: tuple(pairs) for name, pairs in places.items()}

    @property
    def element_count(self) -> int:
        """Number of elements of all blocks."""
        return sum(block.numel for block in self.blocks)

    def canonical(self, tensors: Mapping[str, Tensor], *, partial: bool = False) -> dict[str, Tensor]:
        """Return `tensors` in the plan's order and under its names.

        A tied name counts for the tensor that it shares, if that is not there under its own name.

        Raises:
            PermutationSpecError: a tensor is not the plan's, or without `partial` one of the plan is missing.
        """
        found = {name: tensor for name, tensor in tensors.items() if name in self.axes}
        for name, tensor in tensors.items():
            if name in self.axes:
                continue
            if name not in self.aliases:
                raise PermutationSpecError(
                    f"{name!r} is not among the {len(self.axes)} tensors of this plan, the first of which "
                    f"are {list(self.axes)[:3]}. Pass the tensors it was made for, or make a plan for these "
                    "with block_plan(spec, names)."
                )
            found.setdefault(self.aliases[name], tensor)
        missing = [name for name in self.axes if name not in found]
        if missing and not partial:
            raise PermutationSpecError(
                f"{len(missing)} of the plan's {len(self.axes)} tensors are missing, the first "
                f"{missing[:3]}. Pass them, or make a plan for the others with block_plan(spec, names)."
            )
        return {name: found[name] for name in self.axes if name in found}

    def to_blocks(
        self, tensors: Mapping[str, Shaped[Tensor, "..."]], *, channels: bool = False
    ) -> list[Shaped[Tensor, "..."]]:
        """Cut tensors into blocks, views of them.

        Args:
            tensors: by name, each [*batch, *shape] or with `channels` [*batch, *shape, channels];
                the leading batch dimensions (several nets of one spec) are the same for all.
            channels: whether the tensors have a trailing channel dimension.

        Returns:
            The tensor of each block of `blocks`: [*batch, n_1, ..., n_d, channels], one channel if
            the tensors have none.

        Raises:
            PermutationSpecError: a name or a shape is not the plan's, or the batch dimensions differ.
        """
        result: list[Tensor] = []
        batch: tuple[str, tuple[int, ...]] | None = None
        for name, tensor in self.canonical(tensors).items():
            axes = self.axes[name]
            full = tensor if channels else tensor.unsqueeze(-1)
            leading = full.ndim - 1 - len(axes)
            expected = tuple(axis.size for axis in axes)
            if leading < 0 or tuple(full.shape[leading:-1]) != expected:
                form = f"[*batch, {', '.join(map(str, expected))}{', channels' if channels else ''}]"
                raise PermutationSpecError(
                    f"{name} has shape {tuple(tensor.shape)}, but the spec gives it {form}. "
                    "Trace the model again, or pass the matching tensors."
                )
            here = tuple(full.shape[:leading])
            batch = batch or (name, here)
            if here != batch[1]:
                raise PermutationSpecError(
                    f"{name} has the batch dimensions {here}, but {batch[0]} has {batch[1]}. "
                    "Stack the tensors of the same nets, in the same order."
                )
            result.extend(cut(full, leading, axes))
        return result

    def from_blocks(
        self, blocks: Sequence[Shaped[Tensor, "..."]], *, channels: bool = False
    ) -> dict[str, Shaped[Tensor, "..."]]:
        """Put blocks together again: the exact inverse of `to_blocks`.

        Args:
            blocks: one tensor [*batch, n_1, ..., n_d, channels] per block of `blocks`.
            channels: whether to keep the channel dimension; without it there must be one channel.

        Raises:
            PermutationSpecError: the number or a shape of the blocks is not the plan's.
        """
        if len(blocks) != len(self.blocks):
            raise PermutationSpecError(
                f"the plan has {len(self.blocks)} blocks, but {len(blocks)} were given."
            )
        for block, values in zip(self.blocks, blocks, strict=True):
            check_values(values, block, block.shape)
            if not channels and values.shape[-1] != 1:
                raise PermutationSpecError(
                    f"block {block} has {values.shape[-1]} channels; pass channels=True to keep them."
                )
        rest = iter(blocks)
        result: dict[str, Tensor] = {}
        for name, axes in self.axes.items():
            whole = join(rest, axes)
            result[name] = whole if channels else whole.squeeze(-1)
        return result


_PLANS: dict[tuple[int, tuple[str, ...] | None], tuple["weakref.ref[PermutationSpec]", BlockPlan]] = {}


def block_plan(spec: PermutationSpec, names: Iterable[str] | None = None) -> BlockPlan:
    """Return the block normal form of the tensors `names` of `spec` (default: all).

    Plans are cached as long as the spec lives.

    Raises:
        PermutationSpecError: the spec has no tensor of one of the names.
    """
    chosen = None if names is None else tuple(names)
    key = (id(spec), chosen)
    known = _PLANS.get(key)
    # An id is used again once its spec is gone: the reference tells whether this is still the same spec.
    if known is not None and known[0]() is spec:
        return known[1]
    plan = _compile(spec, chosen)
    _PLANS[key] = (weakref.ref(spec, lambda _: _PLANS.pop(key, None)), plan)
    return plan


def _compile(spec: PermutationSpec, names: tuple[str, ...] | None) -> BlockPlan:
    if names is None:
        wanted = set(spec.tensors)
    else:
        for name in names:
            spec.axes_of(name)
        wanted = {spec.aliases.get(name, name) for name in names}
    axes: dict[str, tuple[Axis, ...]] = {}
    blocks: list[Block] = []
    for name, entry in spec.tensors.items():
        if name in wanted:
            axes[name] = entry.axes
            blocks.extend(_blocks_of(name, entry, frozenset(spec.fixed)))
    present = {atom.name for terms in axes.values() for axis in terms for atom in atoms_of(axis)}
    aliases = {alias: name for alias, name in spec.aliases.items() if name in axes}
    return BlockPlan(axes, tuple(blocks), frozenset(spec.fixed) & present, aliases)


def _blocks_of(name: str, entry: TensorAxes, fixed: frozenset[str]) -> Iterator[Block]:
    roles = entry.dims + ("other",) * (len(entry.axes) - len(entry.dims))
    fan_in = prod(n for n, role in zip(entry.shape, roles, strict=True) if role in ("in", "kernel"))
    fan_out = prod(n for n, role in zip(entry.shape, roles, strict=True) if role == "out")
    cuts = [pieces(axis, 0.0, 1.0) for axis in entry.axes]
    choices: list[tuple[tuple[tuple[Atom, ...], float], ...]] = [()]
    for options in cuts:
        choices = [(*chosen, piece) for chosen in choices for piece in options]
    for index, chosen in enumerate(choices):
        dims: list[BlockDim] = []
        for tensor_dim, (atoms, _) in enumerate(chosen):
            role = roles[tensor_dim]
            for atom in atoms:
                ordinal = sum(dim.role == role for dim in dims)
                dims.append(BlockDim(atom.name, atom.size, atom.name in fixed, tensor_dim, role, ordinal))
        starts = tuple(start for _, start in chosen)
        yield Block(name, index, tuple(dims), entry.role, entry.depth, entry.used, fan_in, fan_out, starts)


def check_values(values: Tensor, block: Block, sizes: tuple[int, ...]) -> None:
    """Check that `values` is [*batch, *sizes, channels]; raises PermutationSpecError naming the block."""
    leading = values.ndim - 1 - len(sizes)
    if leading < 0 or tuple(values.shape[leading:-1]) != sizes:
        raise PermutationSpecError(
            f"values of shape {tuple(values.shape)} do not fit block {block}: expected "
            f"[{', '.join(['*batch', *map(str, sizes), 'channels'])}]."
        )
