"""AttentionPooling: learned queries that attend to all weights of a net."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nfopt.nn.layout import LayoutError, WeightLayout, check_channels


class AttentionPooling(nn.Module):
    """Pool a weight space into a few vectors by cross-attention (the encoder of arXiv 2305.13546, Inr2Array).

        out_m = softmax_e(q_m k_e^T / sqrt(c)) v_e

    with learned queries q_m and, for every element e of every block, k_e and v_e linear in its channels, with
    weights per block. Each element counts once, so that wide tensors weigh more than narrow ones;
    invariant, since elements have no order. An element's folded positions (inputs, kernel positions) are its
    channels.

    Args:
        layout: the architecture.
        channels: channels per element read.
        queries: number of vectors returned.
        heads: number of heads.
        head_channels: channels per head of queries, keys and values.
        generator: source of the initial weights.

    Attributes:
        features: number of features returned: queries x heads x head_channels.

    Raises:
        LayoutError: a number is not positive.
    """

    def __init__(
        self,
        layout: WeightLayout,
        channels: int,
        queries: int,
        *,
        heads: int = 4,
        head_channels: int = 8,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_channels(layout, channels=channels)
        for name, count in (("queries", queries), ("heads", heads), ("head_channels", head_channels)):
            if not count >= 1:
                raise LayoutError(f"{name} is {count!r}; it must be 1 or more.")
        self.layout, self.channels, self.heads = layout, channels, heads
        inner = heads * head_channels
        self.features = queries * inner
        self.queries = nn.Parameter(torch.randn(heads, queries, head_channels, generator=generator))
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for block in layout.blocks:
            rows = block.multiplicity * channels
            self.weights.append(nn.Parameter(torch.randn(rows, 2 * inner, generator=generator) / rows**0.5))
            # Not zero: what tells the elements of one block from those of another.
            self.biases.append(nn.Parameter(torch.randn(2 * inner, generator=generator)))

    def forward(self, values: Sequence[Float[Tensor, "..."]]) -> Float[Tensor, "*batch features"]:
        """Return the pooled vectors of each net, one after the other.

        Raises:
            LayoutError: the values do not fit the layout.
        """
        self.layout.check(values, self.channels)
        projected = []
        for given, block, weight, bias in zip(
            values, self.layout.blocks, self.weights, self.biases, strict=True
        ):
            batch = given.ndim - 1 - len(block.kept)
            each = given @ weight + bias
            projected.append(each.flatten(batch, -2) if block.kept else each.unsqueeze(-2))
        joint = torch.cat(projected, dim=-2).unflatten(-1, (self.heads, -1)).movedim(-2, -3)
        key, value = joint.chunk(2, dim=-1)
        queries = self.queries.expand(*key.shape[:-3], *self.queries.shape)
        pooled = F.scaled_dot_product_attention(queries, key, value)
        return pooled.movedim(-3, -2).flatten(-3)
