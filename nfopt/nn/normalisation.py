"""Equivariant normalisation and dropout: statistics and masks that no neuron's number enters."""

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nfopt.errors import unknown_name
from nfopt.nn.layout import LayoutError, WeightLayout, check_channels

Over: TypeAlias = Literal["element", "tensor"]
_EPSILON = 1e-6
_VARIANCE_FLOOR = 1e-8
_FARTHEST = 10.0


class WeightSpaceNorm(nn.Module):
    """Divide values by their root mean square, times a learned gain (RMSNorm, arXiv 1910.07467).

    Over "element" the mean is over the channels of one element of one net, as in a transformer; it forgets
    an element's size. Over "tensor" it is over all elements and channels of one block of one net, which keeps
    sizes within a block. Both are the same for every neuron, so the layer is equivariant exactly; statistics
    over a batch of nets, as in the released DWSNets, would tie the nets of a batch together.

    Args:
        layout: the architecture.
        channels: channels per element.
        over: "element" or "tensor".

    Raises:
        LayoutError: the number of channels is not positive.
        UnknownNameError: there is no such choice of `over`.
    """

    def __init__(self, layout: WeightLayout, channels: int, over: Over = "element") -> None:
        super().__init__()
        check_channels(layout, channels=channels)
        if over not in get_args(Over):
            raise unknown_name("choice of `over`", over, get_args(Over))
        self.layout, self.channels, self.over = layout, channels, over
        self.gains = nn.ParameterList(
            nn.Parameter(torch.ones(block.multiplicity * channels)) for block in layout.blocks
        )

    def forward(self, values: Sequence[Float[Tensor, "..."]]) -> list[Float[Tensor, "..."]]:
        """Return the normalised values.

        Raises:
            LayoutError: the values do not fit the layout.
        """
        self.layout.check(values, self.channels)
        normalised = []
        for given, block, gain in zip(values, self.layout.blocks, self.gains, strict=True):
            width = len(block.kept) + 1 if self.over == "tensor" else 1
            square = given.square().mean(tuple(range(-width, 0)), keepdim=True)
            normalised.append(given * (square + _EPSILON).rsqrt() * gain)
        return normalised


class ChannelDropout(nn.Module):
    """Drop whole channels of a block, for all its neurons at once (Tompson et al. 2015, arXiv 1411.4280).

    Independent masks per element are equivariant in distribution only; one mask per net, block and channel is
    so exactly. Does nothing in evaluation, unlike the dropout of the released DWSNets.

    Args:
        probability: share of the channels dropped in training, from 0 to below 1; the others are scaled up.
        generator: source of the masks, on the device of the values; torch's own by default.

    Raises:
        LayoutError: the probability is out of range.
    """

    def __init__(self, probability: float, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise LayoutError(f"a dropout probability is from 0 to below 1, not {probability!r}.")
        self.probability, self.generator = probability, generator

    def forward(
        self, values: Sequence[Float[Tensor, "..."]], layout: WeightLayout
    ) -> list[Float[Tensor, "..."]]:
        """Return the values of a layout with channels dropped."""
        if not self.training or self.probability == 0:
            return list(values)
        keep = 1 - self.probability
        dropped = []
        for given, block in zip(values, layout.blocks, strict=True):
            batch = given.shape[: given.ndim - 1 - len(block.kept)]
            shape = (*batch, *[1] * len(block.kept), given.shape[-1])
            drawn = torch.rand(shape, generator=self.generator, device=given.device)
            dropped.append(given * ((drawn < keep).to(given.dtype) / keep))
        return dropped


class WeightStandardiser(nn.Module):
    """Shift and scale values by the mean and standard deviation of a zoo of nets, per block and channel.

    The statistics run over nets and over all neurons, so that the map is equivariant; statistics per weight,
    as the released DWSNets take them, are not. Folded positions (inputs, kernel positions) have their own.
    Until `fit` is called it is the identity.

    Args:
        layout: the architecture.
        channels: channels per element.

    Raises:
        LayoutError: the number of channels is not positive.
    """

    def __init__(self, layout: WeightLayout, channels: int) -> None:
        super().__init__()
        check_channels(layout, channels=channels)
        self.layout, self.channels = layout, channels
        for b, block in enumerate(layout.blocks):
            self.register_buffer(f"mean{b}", torch.zeros(block.multiplicity * channels))
            self.register_buffer(f"std{b}", torch.ones(block.multiplicity * channels))

    @torch.no_grad()
    def fit(self, values: Sequence[Float[Tensor, "..."]]) -> "WeightStandardiser":
        """Take the statistics of a zoo; what does not vary gets the scale of its size, or 1 if it is zero.

        Args:
            values: per block [*batch, *kept sizes, multiplicity x channels], the batch being the zoo.

        Raises:
            LayoutError: the values do not fit the layout, or are not finite.
        """
        self.layout.check(values, self.channels)
        for b, given in enumerate(values):
            flat = given.flatten(0, -2) if given.ndim > 1 else given[None]
            if not bool(torch.isfinite(flat).all()):
                raise LayoutError(
                    f"block {self.layout.blocks[b].block} holds NaN or infinity: leave such nets out of "
                    "the zoo."
                )
            mean, std = flat.mean(0), flat.std(0, correction=0)
            constant = std <= 1e-6 * mean.abs()
            std = torch.where(constant, mean.abs(), std)
            getattr(self, f"mean{b}").copy_(mean)
            getattr(self, f"std{b}").copy_(torch.where(std > 0, std, 1))
        return self

    def forward(self, values: Sequence[Float[Tensor, "..."]]) -> list[Float[Tensor, "..."]]:
        """Return the standardised values.

        Raises:
            LayoutError: the values do not fit the layout.
        """
        self.layout.check(values, self.channels)
        return [
            (given - getattr(self, f"mean{b}")) / getattr(self, f"std{b}") for b, given in enumerate(values)
        ]


class BatchStandardiser(nn.Module):
    """Shift and scale the features of each net by the nets of its batch (batch normalisation without gains).

    Averages over neurons differ little from net to net: read as they come, nearly all of a pooled vector is
    the same for every net. Statistics of the zoo from before training do not help for long, since the layers
    below drift by more than the spread that they began with. So in training the statistics are those of the
    batch, afterwards running means of them (Ioffe and Szegedy 2015, arXiv 1502.03167); answers about a net
    then depend on no other. A batch of a single net is standardised by the running means.

    What comes out is kept within -10 .. 10, which a batch of up to 101 nets never leaves. A unit that is
    silent for every net of the training but not for some other would answer in the thousands there. Infinity
    stays.

    Args:
        features: length of the vector of a net.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    @torch.no_grad()
    def fit(self, pooled: Float[Tensor, "nets features"]) -> None:
        """Begin with the statistics of these nets; a feature that does not vary is shifted alone."""
        variance = pooled.var(0, correction=0)
        # What varies by rounding alone must not be blown up to noise of size 1.
        varies = variance > 1e-12 * pooled.square().mean(0)
        self.running_mean.copy_(pooled.mean(0))
        self.running_var.copy_(torch.where(varies, variance, 1))

    def forward(self, pooled: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        """Return the standardised features."""
        rows = pooled.reshape(-1, pooled.shape[-1])
        by_batch = self.training and len(rows) > 1
        standard = F.batch_norm(
            rows, self.running_mean, self.running_var, training=by_batch, momentum=0.1, eps=_VARIANCE_FLOOR
        )
        kept = torch.where(standard.isinf(), standard, standard.clamp(-_FARTHEST, _FARTHEST))
        return kept.reshape(pooled.shape)
