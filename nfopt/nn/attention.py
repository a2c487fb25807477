"""NPAttention: self-attention among the rows and columns of all weight tensors."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nfopt.nn.layout import LayoutError, WeightLayout, check_channels
from nfopt.nn.nf_linear import check_io_permuted


class NPAttention(nn.Module):
    """The attention layer of Neural Functional Transformers (arXiv 2305.13546), on any spec.

    For each permuted atom a (the neurons of a layer), every vector over a in the model is a token: the rows
    of the matrix that reads from a, the columns of the one that writes to it, its bias. Tokens attend to each
    other,

        softmax(q k^T / sqrt(n_a c)) v,   q, k, v linear in a token's n_a x channels, alike for all n_a

    and each element sums what its dimensions brought. Which tensor a token is from is in its projections. A
    third term lets each element attend to one summary (the mean) per block of the model. Queries, keys and
    values move with the neurons, so the layer is equivariant; it does not contain the identity, so use it in
    a residual branch.

    What differs from the paper: its third term attends to every weight of the model, at a cost quadratic in
    the parameters; and it is written for MLPs and plain convolutional nets. A matrix whose two dimensions
    are of one atom gives its rows and its columns, without a token for its diagonal.
    Cost: for an atom of n neurons with T tokens T^2 n channels: for an MLP of width n about 4 n^3 per layer.

    Args:
        layout: the architecture from `weight_layout(spec, permute_io=True)`.
        in_channels: channels per element read.
        out_channels: channels per element written.
        heads: number of heads.
        head_channels: channels per head and index; (out_channels / heads, rounded up) by default.
        generator: source of the initial weights.

    Raises:
        LayoutError: a number is not positive, or the layout folds inputs or outputs.
    """

    def __init__(
        self,
        layout: WeightLayout,
        in_channels: int,
        out_channels: int,
        *,
        heads: int = 4,
        head_channels: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not heads >= 1 or (head_channels is not None and not head_channels >= 1):
            raise LayoutError(f"heads ({heads}) and head_channels ({head_channels}) must be 1 or more.")
        check_channels(layout, in_channels=in_channels, out_channels=out_channels)
        check_io_permuted(layout, "NPAttention")
        self.layout, self.in_channels, self.out_channels = layout, in_channels, out_channels
        self.heads = heads
        self.inner = heads * (head_channels or -(-out_channels // heads))
        self._occurrences: dict[str, list[tuple[int, int, int]]] = {atom: [] for atom in layout.sizes}
        self.enter, self.leave = nn.ParameterList(), nn.ParameterList()
        self.ask, self.summarise, self.answer = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()

        def draw(rows: int, columns: int, scale: float = 1.0) -> nn.Parameter:
            weight = torch.randn(rows, columns, generator=generator)
            return nn.Parameter(weight * scale / rows**0.5)

        for b, block in enumerate(layout.blocks):
            rows, columns = block.multiplicity * in_channels, block.multiplicity * out_channels
            share = (len(block.kept) + 1) ** -0.5
            for position, atom in enumerate(block.atoms):
                self._occurrences[atom].append((len(self.enter), b, position))
                self.enter.append(draw(rows, 3 * self.inner))
                self.leave.append(draw(self.inner, columns, share))
            self.ask.append(draw(rows, self.inner))
            self.summarise.append(draw(rows, 2 * self.inner))
            self.answer.append(draw(self.inner, columns, share))

    def forward(self, values: Sequence[Float[Tensor, "..."]]) -> list[Float[Tensor, "..."]]:
        """Apply the layer to the values of a layout.

        Raises:
            LayoutError: the values do not fit the layout.
        """
        self.layout.check(values, self.in_channels)
        outputs = self._among_summaries(values)
        for occurrences in self._occurrences.values():
            tokens = [self._tokens(values[b], i, b, d) for i, b, d in occurrences]
            query, key, value = torch.cat(tokens, dim=-3).chunk(3, dim=-1)
            size = query.shape[-2]
            mixed = F.scaled_dot_product_attention(self._split(query), self._split(key), self._split(value))
            # [*batch, heads, tokens, size x head channels] back to [*batch, tokens, size, inner]
            mixed = mixed.unflatten(-1, (size, -1)).movedim(-4, -2).flatten(-2)
            counts = [part.shape[-3] for part in tokens]
            for (i, b, d), part in zip(occurrences, mixed.split(counts, dim=-3), strict=True):
                outputs[b] = outputs[b] + self._place(part @ self.leave[i], b, d)
        return outputs

    def _tokens(self, given: Tensor, i: int, b: int, position: int) -> Tensor:
        """Return the vectors over one dimension of a block, projected: [*batch, tokens, size, 3 inner]."""
        kept = len(self.layout.blocks[b].kept)
        moved = given.movedim(position - kept - 1, -2) @ self.enter[i]
        batch = given.ndim - 1 - kept
        if kept == 1:
            return moved.unsqueeze(-3)
        return moved.flatten(batch, -3)

    def _place(self, part: Tensor, b: int, position: int) -> Tensor:
        """Put tokens [*batch, tokens, size, channels] back where `_tokens` took them."""
        shape = self.layout.blocks[b].shape
        others = [n for p, n in enumerate(shape) if p != position]
        opened = part.unflatten(-3, others) if others else part.squeeze(-3)
        return opened.movedim(-2, position - len(shape) - 1)

    def _split(self, x: Tensor) -> Tensor:
        """Turn [*batch, tokens, size, inner] into [*batch, heads, tokens, size x head channels]."""
        return x.unflatten(-1, (self.heads, -1)).movedim(-2, -4).flatten(-2)

    def _among_summaries(self, values: Sequence[Tensor]) -> list[Tensor]:
        means = [
            given.mean(tuple(range(-len(block.kept) - 1, -1))) if block.kept else given
            for given, block in zip(values, self.layout.blocks, strict=True)
        ]
        summaries = [mean @ weight for mean, weight in zip(means, self.summarise, strict=True)]
        key, value = (
            torch.stack(summaries, dim=-2).unflatten(-1, (self.heads, -1)).movedim(-2, -3).chunk(2, -1)
        )
        outputs = []
        for given, block, ask, answer in zip(values, self.layout.blocks, self.ask, self.answer, strict=True):
            batch = given.ndim - 1 - len(block.kept)
            query = (given @ ask).flatten(batch, -2) if block.kept else (given @ ask).unsqueeze(-2)
            query = query.unflatten(-1, (self.heads, -1)).movedim(-2, -3)
            mixed = F.scaled_dot_product_attention(query, key, value).movedim(-3, -2).flatten(-2) @ answer
            outputs.append(mixed.unflatten(-2, block.shape) if block.kept else mixed.squeeze(-2))
        return outputs
