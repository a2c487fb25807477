"""DWSLinear: the full affine layer of Deep Weight-Space networks."""

from collections.abc import Iterable
from typing import Literal, TypeAlias, get_args

import torch

from nfopt.errors import unknown_name
from nfopt.nn.layout import WeightLayout
from nfopt.nn.pooled_linear import PooledLinear
from nfopt.nn.resolution import Reduction

Sector: TypeAlias = Literal["w2w", "w2b", "b2w", "b2b"]
SECTORS: tuple[Sector, ...] = get_args(Sector)
_VECTOR_ROLES = ("bias", "norm_scale", "norm_shift", "statistic")


class DWSLinear(PooledLinear):
    """Every affine map between weight spaces that follows the permutations of the hidden neurons.

    All blocks of Navon et al. 2023 (arXiv 2301.12780, the characterisation of affine equivariant layers):
    weights to weights (W2W), weights to biases (W2B), biases to weights (B2W), biases to biases (B2B), and
    constants. The paper states them for MLPs; here the spec may be any, with inputs, outputs and kernel
    positions as channels. Biases, and the scales, shifts and statistics of normalisation, count as B.

    The number of free parameters is that of `orbit_count`. The released layers differ: they map the weights
    before the last to the last ones by a map that is constant over the outputs (a flag of the wrong name),
    draw several constants that add up to one, default to reductions by maximum and to set attention in place
    of the linear blocks, keep dropout on in evaluation, and need three layers at least. Their data are
    normalised weight by weight with statistics of the zoo, which is not equivariant; `WeightStandardiser` is.

    Wide inputs make many parameters: (784 x channels)^2 for an MNIST net. With them permuted instead
    (`weight_layout(spec, also_permuted=...)`) and told apart by a `PositionEncoding`, there are few; the maps
    are then those that follow the larger group.

    Args:
        layout: the architecture, with inputs and outputs folded (the default of `weight_layout`).
        in_channels: channels per element read.
        out_channels: channels per element written.
        sectors: which of "w2w", "w2b", "b2w", "b2b" take part; leaving some out is the paper's ablation.
        reduction: "mean" (linear), or "max" as in the released experiments.
        bias: whether to add the constants.
        generator: source of the initial weights.

    Raises:
        LayoutError: a number of channels is not positive.
        UnknownNameError: there is no such sector or reduction.
    """

    def __init__(
        self,
        layout: WeightLayout,
        in_channels: int,
        out_channels: int,
        *,
        sectors: Iterable[Sector] = SECTORS,
        reduction: Reduction = "mean",
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        chosen = frozenset(sectors)
        for sector in chosen:
            if sector not in SECTORS:
                raise unknown_name("sector", sector, SECTORS)
        kinds = ["b" if is_vector(layout, b) else "w" for b in range(len(layout.blocks))]
        super().__init__(
            layout,
            in_channels,
            out_channels,
            reduction=reduction,
            bias=bias,
            pairs=lambda source, target: f"{kinds[source]}2{kinds[target]}" in chosen,
            generator=generator,
        )


def is_vector(layout: WeightLayout, block: int) -> bool:
    """Return whether a block belongs to a bias or another vector, and not to a weight matrix."""
    found = layout.blocks[block].block
    return found.role in _VECTOR_ROLES or len(layout.plan.axes[found.tensor]) <= 1
