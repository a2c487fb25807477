"""Strip: small tensors laid end to end, so that a step works on all of them at once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nfopt.weightspace.incidence import Incidence

MOST_PER_TENSOR = 1 << 14  # elements; laying larger ones out costs more than it saves
MOST_PER_STRIP = 1 << 18


@dataclass(frozen=True, eq=False)
class Strip:
    """Tensors without columns, their elements end to end.

    Attributes:
        positions: the tensors, among all.
        shapes: their shapes.
        sizes: their numbers of elements.
        member: [elements] which of `positions` an element belongs to.
        tensor: [elements] that tensor's position among all.
        row: [elements] the entry of an element's row.
    """

    positions: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    member: Int[Tensor, " elements"]
    tensor: Int[Tensor, " elements"]
    row: Int[Tensor, " elements"]

    @classmethod
    def of(cls, incidence: Incidence, positions: Sequence[int]) -> "Strip":
        """Return the strip of the tensors at `positions` of an incidence."""
        shapes, rows = [], []
        for i in positions:
            layout, entries = incidence.layouts[i], incidence.slices[incidence.names[i], "out"]
            along = [n if d in layout.out_dims else 1 for d, n in enumerate(layout.shape)]
            row = torch.arange(entries.start, entries.stop).reshape(along).expand(layout.shape)
            shapes.append(layout.shape)
            rows.append(row.reshape(-1))
        sizes = tuple(map(len, rows))
        member = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        return cls(
            tuple(positions),
            tuple(shapes),
            sizes,
            member,
            torch.tensor(positions)[member],
            torch.cat(rows),
        )

    def to(self, device: torch.device) -> "Strip":
        """Return the same strip with its index tensors on `device`."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ("member", "tensor", "row")})

    def join(self, tensors: Sequence[Float[Tensor, "..."]]) -> Float[Tensor, "*batch elements"]:
        """Lay the members end to end, behind any leading dimensions."""
        flat = [
            t if len(shape) == 1 else t.reshape((*t.shape[: t.dim() - len(shape)], -1))
            for t, shape in zip(tensors, self.shapes, strict=True)
        ]
        return torch.cat(flat, dim=-1)

    def split(self, laid: Float[Tensor, "*batch elements"]) -> list[Float[Tensor, "..."]]:
        """Undo `join`; the tensors share the memory of `laid`."""
        return [
            part if len(shape) == 1 else part.reshape((*part.shape[:-1], *shape))
            for part, shape in zip(laid.split(self.sizes, dim=-1), self.shapes, strict=True)
        ]

    def spread(self, values: Float[Tensor, "*batch members"]) -> Float[Tensor, "*batch elements"]:
        """Give every element the value of its tensor."""
        return values.index_select(-1, self.member)

    def means(self, laid: Float[Tensor, "*batch elements"]) -> Float[Tensor, "*batch members"]:
        """Average over each tensor."""
        return torch.stack([part.mean(dim=-1) for part in laid.split(self.sizes, dim=-1)], dim=-1)


def strips_of(incidence: Incidence, positions: Sequence[int]) -> tuple[Strip, ...]:
    """Lay small tensors without columns into strips; what fits into none, or would be alone, is left out.

    Args:
        incidence: the tensors.
        positions: of those that may be laid.
    """
    strips: list[list[int]] = [[]]
    held = 0
    for i in positions:
        layout = incidence.layouts[i]
        size = layout.out_size * layout.rest_size
        if layout.in_dims or not 0 < size <= MOST_PER_TENSOR:
            continue
        if held + size > MOST_PER_STRIP:
            strips.append([])
            held = 0
        strips[-1].append(i)
        held += size
    return tuple(Strip.of(incidence, members) for members in strips if len(members) > 1)
