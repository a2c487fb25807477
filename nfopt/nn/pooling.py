"""InvariantPooling: what of a weight space stays the same however its neurons are numbered."""

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nfopt.errors import unknown_name
from nfopt.nn.layout import LayoutError, WeightLayout, check_channels
from nfopt.nn.orbits import Reading, parts_fit, resolutions
from nfopt.nn.resolution import compile_reader

Statistic: TypeAlias = Literal["mean", "max", "rms"]


class InvariantPooling(nn.Module):
    """Pool each block over its permuted dimensions, and each of its diagonals.

    With "mean" these are all linear invariants (the invariant layers of Navon et al. 2023, the pooling of
    Zhou et al. 2023: HNP if inputs and outputs are folded, NP if they are permuted); "max" and "rms" are not
    linear. The layers that were released with the papers know MLPs and plain convolutional nets alone.

    Args:
        layout: the architecture.
        channels: channels per element read.
        statistics: what to take over each set of elements: "mean", "max", "rms".

    Attributes:
        features: number of features returned.

    Raises:
        LayoutError: the number of channels is not positive, or there is no statistic.
        UnknownNameError: there is no such statistic.
    """

    def __init__(
        self, layout: WeightLayout, channels: int, statistics: Sequence[Statistic] = ("mean",)
    ) -> None:
        super().__init__()
        check_channels(layout, channels=channels)
        if not statistics:
            raise LayoutError(f"pooling needs a statistic, one or more of {', '.join(get_args(Statistic))}.")
        for statistic in statistics:
            if statistic not in get_args(Statistic):
                raise unknown_name("statistic", statistic, get_args(Statistic))
        self.layout, self.channels, self.statistics = layout, channels, tuple(statistics)
        by_block: list[list[Reading]] = [[] for _ in layout.blocks]
        for reading in resolutions(layout)[0].readings:
            atoms = layout.blocks[reading.block].atoms
            if parts_fit(layout, [atoms[group[0]] for group in reading.averaged]):
                by_block[reading.block].append(reading)
        self._readers = [
            compile_reader(block, readings) for block, readings in zip(layout.blocks, by_block, strict=True)
        ]
        sets = sum(
            len(readings) * block.multiplicity
            for block, readings in zip(layout.blocks, by_block, strict=True)
        )
        self.features = sets * channels * len(self.statistics)

    def forward(self, values: Sequence[Float[Tensor, "..."]]) -> Float[Tensor, "*batch features"]:
        """Return the invariant features of each net.

        Raises:
            LayoutError: the values do not fit the layout.
        """
        self.layout.check(values, self.channels)
        pooled: list[Tensor] = []
        for statistic in self.statistics:
            for given, reader in zip(values, self._readers, strict=True):
                if statistic == "rms":
                    pooled.extend(root(square) for square in reader(given.square(), "mean"))
                else:
                    pooled.extend(reader(given, statistic))
        return torch.cat(pooled, dim=-1)


def root(square: Tensor) -> Tensor:
    """Return the square root, with a gradient of zero at zero instead of infinity."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1).sqrt(), 0)
