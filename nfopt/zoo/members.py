"""Members: the nets that a zoo is to have, each a side and a number on it; all else follows from the seed."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from nfopt.seeds import generator
from nfopt.zoo.zoo import SIDES, ZooError


@dataclass(frozen=True, eq=False)
class Members:
    """Nets to be made. Member (side, number) of a zoo is the same net however many others there are.

    Attributes:
        side: index into `SIDES`.
        number: from 0 on each side.
    """

    side: Int[Tensor, " nets"]
    number: Int[Tensor, " nets"]

    @classmethod
    def counted(cls, train: int, val: int = 0, test: int = 0) -> "Members":
        """Return so many members of each side, side after side; raises ZooError where there is none."""
        counts = (train, val, test)
        if min(counts) < 0 or sum(counts) < 1:
            raise ZooError(f"a zoo needs at least one net, not {dict(zip(SIDES, counts, strict=True))}.")
        sides = torch.arange(len(SIDES)).repeat_interleave(torch.tensor(counts))
        return cls(sides, torch.cat([torch.arange(count) for count in counts]))

    def __len__(self) -> int:
        return len(self.side)

    def __getitem__(self, part: slice) -> "Members":
        return Members(self.side[part], self.number[part])

    @property
    def names(self) -> list[tuple[str, int]]:
        """The side and the number of each member, for its draws."""
        pairs = zip(self.side.tolist(), self.number.tolist(), strict=True)
        return [(SIDES[side], number) for side, number in pairs]

    def generators(self, seed: int, purpose: str) -> list[torch.Generator]:
        """Return a generator for each member's own draws of one purpose."""
        return [generator(seed, side, number, purpose) for side, number in self.names]
