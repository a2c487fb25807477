"""NPLinear, HNPLinear and PointwiseLinear: the linear layers of neural functionals (NFN)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nfopt.nn.layout import LayoutError, WeightLayout, check_channels, io_atoms
from nfopt.nn.pooled_linear import PooledLinear


class HNPLinear(PooledLinear):
    """The NF-layer for hidden neuron permutations (HNP of Zhou et al. 2023, arXiv 2302.14040).

    Inputs and outputs have a fixed meaning and are channels, as are kernel positions: the parameters of the
    first and last layer grow with (inputs x channels)^2. It spans the same maps as `DWSLinear`.

    The released layer (nfn 0.1.2) does not: the last weights do not hear of the single biases of the last
    hidden layer. And it has more parameters than maps, since it reads the means of the first and last tensors
    twice: for a 2-5-7-3 net 217 parameters for 171 of the 174 maps. Here there are 174, one per orbit.

    Args:
        layout: the architecture, with inputs and outputs folded.
        in_channels: channels per element read.
        out_channels: channels per element written.
        generator: source of the initial weights.

    Raises:
        LayoutError: a number of channels is not positive, or inputs or outputs are not folded.
    """

    def __init__(
        self,
        layout: WeightLayout,
        in_channels: int,
        out_channels: int,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        kept = layout.permuted & layout.plan.fixed
        if kept:
            raise LayoutError(
                f"HNPLinear gives fixed indices weights of their own, but this layout permutes "
                f"{', '.join(sorted(kept))}. Make it with weight_layout(spec), or use NPLinear."
            )
        super().__init__(layout, in_channels, out_channels, generator=generator)


class NPLinear(PooledLinear):
    """The NF-layer for neuron permutations (NP of Zhou et al. 2023, arXiv 2302.14040).

    Inputs and outputs are taken for interchangeable too, so that few parameters serve wide ones, and cannot
    be told apart unless a `PositionEncoding` does it. The released layer draws four constants per tensor
    where one is free; here there are as many parameters as `orbit_count` says.

    Args:
        layout: the architecture from `weight_layout(spec, permute_io=True)`.
        in_channels: channels per element read.
        out_channels: channels per element written.
        generator: source of the initial weights.

    Raises:
        LayoutError: a number of channels is not positive, or the layout folds all its fixed atoms although
            it has inputs or outputs.
    """

    def __init__(
        self,
        layout: WeightLayout,
        in_channels: int,
        out_channels: int,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        check_io_permuted(layout, "NPLinear")
        super().__init__(layout, in_channels, out_channels, generator=generator)


class PointwiseLinear(nn.Module):
    """Each element mapped by itself, with weights per block: the ablation of NFN's tables.

    Folded positions of one element (inputs, kernel positions) are mixed with each other.

    Args:
        layout: the architecture.
        in_channels: channels per element read.
        out_channels: channels per element written.
        generator: source of the initial weights.

    Raises:
        LayoutError: a number of channels is not positive.
    """

    def __init__(
        self,
        layout: WeightLayout,
        in_channels: int,
        out_channels: int,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_channels(layout, in_channels=in_channels, out_channels=out_channels)
        self.layout, self.in_channels, self.out_channels = layout, in_channels, out_channels
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for block in layout.blocks:
            rows, columns = block.multiplicity * in_channels, block.multiplicity * out_channels
            self.weights.append(nn.Parameter(torch.randn(rows, columns, generator=generator) / rows**0.5))
            self.biases.append(nn.Parameter(torch.zeros(columns)))

    def forward(self, values: Sequence[Float[Tensor, "..."]]) -> list[Float[Tensor, "..."]]:
        """Apply the layer to the values of a layout.

        Raises:
            LayoutError: the values do not fit the layout.
        """
        self.layout.check(values, self.in_channels)
        return [
            given @ weight + bias
            for given, weight, bias in zip(values, self.weights, self.biases, strict=True)
        ]


def check_io_permuted(layout: WeightLayout, layer: str) -> None:
    """Check that inputs and outputs are dimensions of a layout; raises LayoutError."""
    left = io_atoms(layout.plan) - layout.permuted
    if left:
        raise LayoutError(
            f"{layer} permutes inputs and outputs, but this layout folds {', '.join(sorted(left))} into "
            "channels. Make it with weight_layout(spec, permute_io=True), or use HNPLinear."
        )
