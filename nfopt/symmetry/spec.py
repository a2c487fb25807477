"""PermutationSpec: which axes of a model's tensors are permuted together, as a value."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from nfopt.errors import PermutationSpecError
from nfopt.symmetry.axes import UNIT, Atom, Axis, Prod, atoms_of, from_json, to_json

Role: TypeAlias = Literal[
    "linear", "conv", "recurrent", "embedding", "bias", "norm_scale", "norm_shift", "statistic", "other"
]
DimRole: TypeAlias = Literal["out", "in", "kernel", "other"]
Permutation: TypeAlias = dict[str, Tensor]
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class TensorAxes:
    """How one parameter or normalisation statistic is indexed.

    Attributes:
        axes: one axis term per dimension.
        role: what the model uses the tensor for, read off its first use.
        dims: for each dimension whether it indexes outputs, inputs, kernel positions or something else.
        depth: position of the first use in the forward pass, from 0 (first) to 1 (last).
        used: False when the traced forward pass never read the tensor.
    """

    axes: tuple[Axis, ...]
    role: Role = "other"
    dims: tuple[DimRole, ...] = ()
    depth: float = 0.0
    used: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple(axis.size for axis in self.axes)


@dataclass(frozen=True)
class PermutationSpec:
    """The permutation symmetry of a model: for every sampled p, `act(p, tensors)` computes what `tensors` do.

    A value: it compares, prints as a table of groups, and round-trips through JSON.

    Attributes:
        tensors: the axes of every parameter and every normalisation statistic, by qualified name.
        fixed: for each atom that must not be permuted, the reason.
        aliases: names that share a tensor of `tensors` (tied weights), mapped to its name there.
        unruled: operations without a rule that fixed the axes they touched, as "operation (where)".
    """

    tensors: Mapping[str, TensorAxes]
    fixed: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    unruled: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sizes: dict[str, tuple[int, str]] = {}
        for name, entry in self.tensors.items():
            for dim, axis in enumerate(entry.axes):
                for atom in atoms_of(axis):
                    size, where = sizes.setdefault(atom.name, (atom.size, f"{name} (axis {dim})"))
                    if size != atom.size:
                        raise PermutationSpecError(
                            f"axis group {atom.name!r} has size {size} at {where} but {atom.size} at {name} "
                            f"(axis {dim}). Tie the two layers, or give the axes different groups."
                        )

    @classmethod
    def uncoupled(cls, shapes: Mapping[str, Iterable[int]]) -> "PermutationSpec":
        """Return the spec of tensors about whose model nothing is known: every axis is a group of its own."""
        tensors = {}
        for name, shape in shapes.items():
            sizes = tuple(shape)
            axes = tuple(Atom(f"{name}[{d}]", n) if n != 1 else UNIT for d, n in enumerate(sizes))
            kernel: list[DimRole] = ["kernel"] * (len(sizes) - 2)
            dims: list[DimRole] = ["out", "in", *kernel]
            role: Role = "bias" if len(sizes) <= 1 else "linear" if len(sizes) == 2 else "conv"
            tensors[name] = TensorAxes(axes, role=role, dims=tuple(dims[: len(sizes)]))
        return cls(tensors)

    @cached_property
    def atoms(self) -> dict[str, Atom]:
        """Every atom by name, in the order of first occurrence."""
        found: dict[str, Atom] = {}
        for entry in self.tensors.values():
            for axis in entry.axes:
                for atom in atoms_of(axis):
                    found.setdefault(atom.name, atom)
        return found

    @cached_property
    def groups(self) -> dict[str, Atom]:
        """The atoms that may be permuted: those of more than one index that nothing fixes."""
        return {name: atom for name, atom in self.atoms.items() if atom.size > 1 and name not in self.fixed}

    @cached_property
    def occurrences(self) -> dict[str, tuple[tuple[str, int], ...]]:
        """For each atom the (tensor name, dimension) pairs where it occurs, repetitions included."""
        places: dict[str, list[tuple[str, int]]] = {name: [] for name in self.atoms}
        for name, entry in self.tensors.items():
            for dim, axis in enumerate(entry.axes):
                for atom in atoms_of(axis):
                    places[atom.name].append((name, dim))
        return {name: tuple(pairs) for name, pairs in places.items()}

    def sample(self, generator: torch.Generator | None = None) -> Permutation:
        """Draw a uniformly random permutation of every group.

        Returns:
            For each group an index tensor p of its size; `act` puts element p[i] at position i.
        """
        return {name: torch.randperm(atom.size, generator=generator) for name, atom in self.groups.items()}

    def act(self, permutation: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies of named tensors with every axis permuted.

        Works on parameters, statistics, gradients, and on state that has its parameter's shape.
        Tied names are permuted like the tensor they share; a name of no known tensor is an error.

        Args:
            permutation: index tensors by group, as from `sample`; groups left out stay as they are.
            tensors: tensors by qualified name, each of the shape that the spec gives that name.

        Raises:
            PermutationSpecError: a name or a shape is not the spec's.
        """
        return {name: self.act_on(name, permutation, tensor) for name, tensor in tensors.items()}

    def act_on(
        self,
        name: str,
        permutation: Mapping[str, Tensor],
        tensor: Tensor,
        dims: tuple[int, ...] | None = None,
    ) -> Tensor:
        """Return `tensor`, which is indexed like `dims` of the tensor `name` (default: all), permuted."""
        axes = self.axes_of(name)
        axes = axes if dims is None else tuple(axes[d] for d in dims)
        if tuple(tensor.shape) != tuple(axis.size for axis in axes):
            raise PermutationSpecError(
                f"{name} has shape {tuple(tensor.shape)}, but the spec gives it "
                f"{tuple(axis.size for axis in axes)}. Trace the model again, or pass the matching tensors."
            )
        for dim, axis in enumerate(axes):
            order = permuted_order(axis, permutation)
            if order is not None:
                tensor = tensor.index_select(dim, order.to(tensor.device))
        return tensor.clone()

    def axes_of(self, name: str) -> tuple[Axis, ...]:
        """Return the axes of the tensor `name`, tied names included; raises PermutationSpecError."""
        entry = self.tensors.get(self.aliases.get(name, name))
        if entry is None:
            raise PermutationSpecError(
                f"the spec has no tensor {name!r}; it holds {len(self.tensors)} tensors, the first "
                f"{list(self.tensors)[:3]}. Was it traced from another model?"
            )
        return entry.axes

    @property
    def coverage(self) -> float:
        """Share of the parameters (statistics left out) with at least one axis that can be permuted."""
        total = covered = 0
        for entry in self.tensors.values():
            if entry.role == "statistic":
                continue
            count = prod(entry.shape)
            total += count
            if any(atom.name in self.groups for axis in entry.axes for atom in atoms_of(axis)):
                covered += count
        return covered / total if total else 0.0

    @property
    def unused(self) -> tuple[str, ...]:
        """Names of the parameters that the traced forward pass never read."""
        return tuple(name for name, entry in self.tensors.items() if not entry.used)

    def to_json(self) -> str:
        """Return the spec as JSON text."""
        data = {
            "version": FORMAT_VERSION,
            "atoms": {name: atom.size for name, atom in self.atoms.items()},
            "tensors": {
                name: {
                    "axes": [to_json(axis) for axis in entry.axes],
                    "role": entry.role,
                    "dims": list(entry.dims),
                    "depth": entry.depth,
                    "used": entry.used,
                }
                for name, entry in self.tensors.items()
            },
            "fixed": dict(self.fixed),
            "aliases": dict(self.aliases),
            "unruled": list(self.unruled),
        }
        return json.dumps(data, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "PermutationSpec":
        """Rebuild a spec from `to_json`.

        Raises:
            PermutationSpecError: the text is not such a JSON, or of another version.
        """
        try:
            data: Any = json.loads(text)
            version = data["version"]
            if version != FORMAT_VERSION:
                raise PermutationSpecError(
                    f"the spec file has version {version!r}; this nfopt reads version {FORMAT_VERSION}. "
                    "Trace the model again."
                )
            sizes = {str(name): int(size) for name, size in data["atoms"].items()}
            tensors = {
                name: TensorAxes(
                    axes=tuple(from_json(axis, sizes) for axis in entry["axes"]),
                    role=entry["role"],
                    dims=tuple(entry["dims"]),
                    depth=float(entry["depth"]),
                    used=bool(entry["used"]),
                )
                for name, entry in data["tensors"].items()
            }
            return cls(tensors, dict(data["fixed"]), dict(data["aliases"]), tuple(data["unruled"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PermutationSpecError(f"this is not a permutation spec in JSON: {error!r}.") from error

    def __str__(self) -> str:
        lines = [
            f"PermutationSpec: {len(self.groups)} groups, {len(self.tensors)} tensors, "
            f"{100 * self.coverage:.2f} % of the parameters have a permutable axis"
        ]
        for name, atom in self.groups.items():
            places = self.occurrences[name]
            shown = ", ".join(f"{tensor}[{dim}]" for tensor, dim in places[:4])
            more = f", ... ({len(places)})" if len(places) > 4 else ""
            lines.append(f"  {name} ({atom.size}): {shown}{more}")
        lines.extend(f"  no rule: {op}" for op in self.unruled)
        return "\n".join(lines)


def permuted_order(axis: Axis, permutation: Mapping[str, Tensor]) -> Tensor | None:
    """Return the index order in which `permutation` reads `axis`, or None when it leaves the axis alone."""
    if all(atom.name not in permutation for atom in atoms_of(axis)):
        return None
    return _order(axis, permutation)


def _order(axis: Axis, permutation: Mapping[str, Tensor]) -> Tensor:
    if isinstance(axis, Atom):
        order = permutation.get(axis.name)
        return torch.arange(axis.size) if order is None else order.cpu()
    if isinstance(axis, Prod):
        order = torch.zeros(1, dtype=torch.long)
        for factor in axis.factors:
            order = (order[:, None] * factor.size + _order(factor, permutation)).flatten()
        return order
    parts, start = [], 0
    for block in axis.blocks:
        parts.append(_order(block, permutation) + start)
        start += block.size
    return torch.cat(parts)
