"""Encodings of elements: Fourier features of their values, and codes of their layer, input and output."""

from collections.abc import Sequence
from math import pi
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nfopt.errors import unknown_name
from nfopt.nn.layout import LayoutError, WeightLayout, check_channels

Encoding: TypeAlias = Literal["sinusoidal", "learned"]


class GaussianFourierFeatures(nn.Module):
    """Random Fourier features of each element (Tancik et al. 2020, arXiv 2006.10739, "Gaussian mapping").

        x -> sqrt(2) [sin(2 pi B x), cos(2 pi B x)],  B ~ N(0, scale^2)

    with x the channels of one element. B is drawn once and saved with the weights. The factor sqrt(2), which
    the paper lacks, gives features a root mean square of 1.

    Args:
        in_channels: channels per element read.
        frequencies: rows of B.
        scale: standard deviation of B, in periods per unit of x.
        keep_inputs: whether x itself is put in front.
        generator: source of B.

    Attributes:
        out_channels: channels per element returned.

    Raises:
        LayoutError: a number is not positive.
    """

    frequencies: Tensor

    def __init__(
        self,
        in_channels: int,
        frequencies: int,
        *,
        scale: float = 1.0,
        keep_inputs: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not (in_channels >= 1 and frequencies >= 1 and scale > 0):
            raise LayoutError(
                f"in_channels ({in_channels}), frequencies ({frequencies}) and scale ({scale}) must be "
                "positive."
            )
        self.in_channels, self.keep_inputs = in_channels, keep_inputs
        self.out_channels = 2 * frequencies + (in_channels if keep_inputs else 0)
        drawn = torch.randn(in_channels, frequencies, generator=generator) * scale
        self.register_buffer("frequencies", drawn)

    def forward(self, values: Sequence[Float[Tensor, "..."]]) -> list[Float[Tensor, "..."]]:
        """Return the features of the values of any layout, element by element.

        Raises:
            LayoutError: a block's channels are not a multiple of `in_channels`.
        """
        encoded = []
        for given in values:
            if given.shape[-1] % self.in_channels:
                raise LayoutError(
                    f"values of shape {tuple(given.shape)} do not hold {self.in_channels} channels per "
                    "element."
                )
            x = given.unflatten(-1, (-1, self.in_channels))
            phase = 2 * pi * (x @ self.frequencies)
            waves = [phase.sin() * 2**0.5, phase.cos() * 2**0.5]
            encoded.append(torch.cat([x, *waves] if self.keep_inputs else waves, dim=-1).flatten(-2))
        return encoded


class PositionEncoding(nn.Module):
    """Add codes of what has a fixed place: the layer, and inputs and outputs where they are permuted.

    An `NPLinear` or `NPAttention` stack cannot tell inputs apart; with codes added it follows the
    permutations of hidden neurons alone. Every block has a code, and every index of each fixed atom that is a
    dimension of the layout, the same in all tensors that the atom indexes. "learned" codes are parameters
    (standard normal at first); "sinusoidal" ones are those of Vaswani et al. 2017 (arXiv 1706.03762, section
    3.5), with the position of the block or index. In the released NFN, learned codes of biases are those of
    the weights, and sinusoidal codes of a convolutional last layer are those of the inputs.

    Args:
        layout: the architecture.
        channels: channels per element.
        kind: "learned" or "sinusoidal".
        generator: source of learned codes.

    Raises:
        LayoutError: the number of channels is not positive.
        UnknownNameError: there is no such kind.
    """

    def __init__(
        self,
        layout: WeightLayout,
        channels: int,
        kind: Encoding = "learned",
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_channels(layout, channels=channels)
        if kind not in get_args(Encoding):
            raise unknown_name("position encoding", kind, get_args(Encoding))
        self.layout, self.channels = layout, channels
        self._rows = {atom: i for i, atom in enumerate(a for a in layout.sizes if a in layout.plan.fixed)}
        heights = [len(layout.blocks), *(layout.sizes[atom] for atom in self._rows)]
        self.tables = nn.ParameterList()
        for height in heights:
            if kind == "learned":
                self.tables.append(nn.Parameter(torch.randn(height, channels, generator=generator)))
            else:
                self.tables.append(nn.Parameter(sinusoidal_codes(height, channels), requires_grad=False))

    def forward(self, values: Sequence[Float[Tensor, "..."]]) -> list[Float[Tensor, "..."]]:
        """Return the values with the codes added.

        Raises:
            LayoutError: the values do not fit the layout.
        """
        self.layout.check(values, self.channels)
        layers, *places = self.tables
        encoded = []
        for b, (given, block) in enumerate(zip(values, self.layout.blocks, strict=True)):
            code = layers[b]
            for position, atom in enumerate(block.atoms):
                if atom in self._rows:
                    shape = [1] * len(block.shape)
                    shape[position] = block.shape[position]
                    code = code + places[self._rows[atom]].view(*shape, self.channels)
            encoded.append(given + code.repeat(*[1] * (code.ndim - 1), block.multiplicity))
        return encoded


def sinusoidal_codes(count: int, channels: int) -> Float[Tensor, "count channels"]:
    """Return sin and cos of p / 10000^(2i/channels) at positions p = 0 .. count - 1."""
    frequencies = 10000.0 ** (-torch.arange(0, channels, 2) / channels)
    phase = torch.arange(count)[:, None] * frequencies
    return torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(-2)[:, :channels]
