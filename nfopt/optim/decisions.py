"""Decisions: what the network wants of each tensor, row and column, kept from one decision to the next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nfopt.optim.controls import CONTROL_NAMES
from nfopt.weightspace.incidence import Incidence

DECISIONS = "decisions"


@dataclass(frozen=True)
class Decisions:
    """Shares of the reach of every control, in [-1, 1]; 0 is the nominal optimizer.

    Attributes:
        tensors: one per tensor and control.
        entries: one per row and column, for its gain.
    """

    tensors: Float[Tensor, "*batch tensors 3"]
    entries: Float[Tensor, "*batch entries"]

    def where(self, chosen: Bool[Tensor, "*batch"], other: "Decisions") -> "Decisions":
        """Return these where `chosen`, and the other ones elsewhere."""
        return Decisions(
            torch.where(chosen[..., None, None], self.tensors, other.tensors),
            torch.where(chosen[..., None], self.entries, other.entries),
        )


@dataclass(frozen=True, eq=False)
class Packing:
    """How decisions are kept: one vector per tensor, its controls, rows and columns, zeros at the end.

    Attributes:
        names: the tensors.
        sizes: lengths of their vectors.
        tensors: places of the controls in the vectors laid end to end.
        entries: places of the gains.
        vectors: the way back: for each place, where it is in the flattened controls followed by the gains and
            a zero.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    tensors: Int[Tensor, "tensors 3"]
    entries: Int[Tensor, " entries"]
    vectors: Int[Tensor, " places"]

    @classmethod
    def of(cls, incidence: Incidence) -> "Packing":
        """Return the packing of the tensors of an incidence."""
        count = len(CONTROL_NAMES)
        vectors: list[int] = []
        sizes: list[int] = []
        first_entry = count * len(incidence.names)
        zero = first_entry + incidence.entry_count
        for i, (name, layout) in enumerate(zip(incidence.names, incidence.layouts, strict=True)):
            places = list(range(count * i, count * (i + 1)))
            for side in ("out", "in"):
                if (found := incidence.slices.get((name, side))) is not None:
                    places += range(first_entry + found.start, first_entry + found.stop)
            places += [zero] * (decisions_size(layout.shape) - len(places))
            vectors += places
            sizes.append(len(places))
        back = torch.tensor(vectors, dtype=torch.long)
        places = torch.empty(zero + 1, dtype=torch.long)
        places[back] = torch.arange(len(back))
        return cls(
            incidence.names,
            tuple(sizes),
            places[:first_entry].reshape(-1, count),
            places[first_entry:zero],
            back,
        )

    def to(self, device: torch.device) -> "Packing":
        """Return the same packing with its places on `device`."""
        moved = {name: getattr(self, name).to(device) for name in ("tensors", "entries", "vectors")}
        return replace(self, **moved)

    def read(self, state: Mapping[str, Tensor]) -> Decisions:
        """Return the decisions that a rule's state holds."""
        laid = torch.cat([state[f"{name}/{DECISIONS}"] for name in self.names], dim=-1)
        tensors = laid.index_select(-1, self.tensors.flatten()).unflatten(-1, self.tensors.shape)
        return Decisions(tensors, laid.index_select(-1, self.entries))

    def write(self, decisions: Decisions) -> dict[str, Tensor]:
        """Return decisions as a rule's state holds them."""
        controls, gains = decisions.tensors.flatten(-2), decisions.entries
        flat = torch.cat([controls, gains, torch.zeros_like(controls[..., :1])], dim=-1)
        parts = flat.index_select(-1, self.vectors).split(self.sizes, dim=-1)
        return {f"{name}/{DECISIONS}": part for name, part in zip(self.names, parts, strict=True)}


def decisions_size(shape: Sequence[int]) -> int:
    """Return the length of the vector of a tensor of `shape`, known before the model is traced.

    Only a tensor whose rows or columns go along several dimensions has a longer one.
    """
    return len(CONTROL_NAMES) + max(1, sum(shape))
