"""Multi-head attention whose heads together need not be as wide as what it reads: torch's, after pruning."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class NarrowAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` for any number of heads and channels left; parameters and calls are the same.

    torch's own asserts that heads x channels is `embed_dim`. The scale of the scores stays what it was before
    anything was removed, and torch's fused inference path is not taken.

    Attributes:
        scale: factor of the scores, 1 / sqrt(channels per head before pruning).
    """

    scale: float

    @classmethod
    def take_over(cls, module: nn.MultiheadAttention, heads: int) -> None:
        """Make a torch attention, of which tensors have become smaller, one of this class, in place.

        Changing the class keeps the module's identity, and with it hooks and every place that refers to it.
        """
        if type(module) is nn.MultiheadAttention:
            module.__dict__["scale"] = module.head_dim**-0.5
            module.__class__ = cls
        weights: Any = module.in_proj_weight if module.in_proj_weight is not None else module.q_proj_weight
        module.embed_dim, module.num_heads = weights.shape[1], heads
        module.head_dim = module.out_proj.in_features // heads
        module.kdim = weights.shape[1] if module.in_proj_weight is not None else module.k_proj_weight.shape[1]
        module.vdim = weights.shape[1] if module.in_proj_weight is not None else module.v_proj_weight.shape[1]
        # torch's encoder layers ask this before they hand the weights to their fused kernel.
        module._qkv_same_embed_dim = False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attended values and, if asked for, the weights; shapes and masks as in torch."""
        batched = query.dim() == 3
        if not batched:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = (each.transpose(0, 1) for each in (query, key, value))
        q, k, v = self._projected(query, key, value)
        mask = self._mask(attn_mask, key_padding_mask, len(query), k.shape[2] - key.shape[1], q.dtype)
        scores = self.scale * q @ k.transpose(-1, -2)
        weights = torch.softmax(scores if mask is None else scores + mask, -1)
        weights = functional.dropout(weights, self.dropout, self.training)
        output = self.out_proj((weights @ v).transpose(1, 2).flatten(2))
        shown = weights.mean(1) if average_attn_weights else weights
        if not batched:
            output, shown = output[0], shown[0]
        elif not self.batch_first:
            output = output.transpose(0, 1)
        return output, shown if need_weights else None

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Return queries, keys and values as (batch, head, position, channel)."""
        weights = (
            self.in_proj_weight.chunk(3)
            if self.in_proj_weight is not None
            else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        )
        sizes = [len(weight) for weight in weights]
        biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.split(sizes)
        inputs = (query, key, value)
        q, k, v = map(functional.linear, inputs, weights, biases)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(len(k), 1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(len(v), 1, -1)], 1)
        if self.add_zero_attn:
            k, v = functional.pad(k, (0, 0, 0, 1)), functional.pad(v, (0, 0, 0, 1))
        return [each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for each in (q, k, v)]

    def _mask(
        self, attention: Tensor | None, padding: Tensor | None, batch: int, extra: int, dtype: torch.dtype
    ) -> Tensor | None:
        """Return what is added to the scores; positions that the module itself appends are never masked."""
        total: Tensor | None = None
        if attention is not None:
            attention = _additive(attention, dtype)
            shape = (batch, self.num_heads, *attention.shape[1:])
            total = attention.reshape(shape) if attention.dim() == 3 else attention
        if padding is not None:
            padding = _additive(padding, dtype)[:, None, None, :]
            total = padding if total is None else total + padding
        return total if total is None else functional.pad(total, (0, extra))


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask whose True means "not this" as numbers to add; numbers stay."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float("-inf"))
