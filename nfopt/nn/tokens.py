"""TokenNetwork: from statistics of rows, columns and tensors to decisions per row, column and tensor.

Weights are shared by role, so that one network serves every architecture and width. Neurons speak across
tensors through their tokens (`nfopt.weightspace.Incidence`). Written as pure functions of a flat dictionary
of weights, in which any leading dimensions run many perturbed copies side by side.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nfopt.weightspace.incidence import Incidence


@dataclass(frozen=True)
class TokenNetwork:
    """A role-tied network over entries (rows and columns), tokens (neurons) and tensors.

    With entry features e and tensor features t:

        h      = tanh(A_side e + B t)                         per entry
        token  = u + tanh(C u),  u = mean of h over the entries of the neuron
        back   = mean of token over the neurons of the entry  per entry
        s      = tanh(D [t, mean_out back, mean_in back])     per tensor
        outputs: O [s, t] per tensor; g_side [h, back, e] per entry, centred over each tensor's side

    The direct path from the features makes it a linear controller with something on top.

    Cost: O(entries x hidden^2), independent of the number of parameters.

    Attributes:
        entry_features: channels per row or column.
        tensor_features: channels per tensor.
        tensor_outputs: decisions per tensor.
        hidden: width of every hidden layer.
        couple: False leaves the tokens out, so that tensors do not hear of each other (an ablation).
    """

    entry_features: int
    tensor_features: int
    tensor_outputs: int
    hidden: int = 4
    couple: bool = True

    def init(self, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw the weights: hidden layers scaled by fan-in, output layers at zero."""
        h = self.hidden

        def scaled(out_size: int, in_size: int) -> Tensor:
            return torch.randn(out_size, in_size, generator=generator) / in_size**0.5

        return {
            "entry": torch.stack([scaled(h, self.entry_features) for _ in range(2)]),
            "entry_from_tensor": scaled(h, self.tensor_features),
            "entry_bias": torch.zeros(2, h),
            "token": scaled(h, h),
            "tensor": scaled(h, self.tensor_features + 2 * h),
            "tensor_bias": torch.zeros(h),
            "tensor_output": torch.zeros(self.tensor_outputs, h + self.tensor_features),
            "tensor_output_bias": torch.zeros(self.tensor_outputs),
            "entry_output": torch.zeros(2, 2 * h + self.entry_features),
        }

    def __call__(
        self,
        theta: Mapping[str, Tensor],
        incidence: Incidence,
        entry_features: Float[Tensor, "*batch entries features"],
        tensor_features: Float[Tensor, "*batch tensors features"],
    ) -> tuple[Float[Tensor, "*batch tensors outputs"], Float[Tensor, "*batch entries"]]:
        """Return the unbounded decisions per tensor and per entry.

        Args:
            theta: the weights, as from `init`, each behind the same leading dimensions as the features.
            incidence: entries, tokens and tensors.
            entry_features: features per row and column.
            tensor_features: features per tensor.
        """
        side = incidence.entry_side
        is_out = (side == 0)[:, None]
        by_side = theta["entry"]
        from_entry = torch.where(
            is_out, entry_features @ by_side[..., 0, :, :].mT, entry_features @ by_side[..., 1, :, :].mT
        )
        from_tensor = tensor_features @ theta["entry_from_tensor"].mT
        bias = theta["entry_bias"].index_select(-2, side)
        hidden = torch.tanh(from_entry + from_tensor.index_select(-2, incidence.entry_tensor) + bias)
        if self.couple:
            token = mean_into(
                hidden.index_select(-2, incidence.edge_entry), incidence.edge_token, incidence.token_degree
            )
            token = token + torch.tanh(token @ theta["token"].mT)
            back = mean_into(
                token.index_select(-2, incidence.edge_token), incidence.edge_entry, incidence.entry_degree
            )
        else:
            back = hidden + torch.tanh(hidden @ theta["token"].mT)
        pooled = mean_into(back, incidence.entry_pool, incidence.pool_degree)
        pooled = pooled.unflatten(-2, (len(incidence.names), 2)).flatten(-2)
        summary = torch.cat([tensor_features, pooled], dim=-1) @ theta["tensor"].mT
        summary = torch.tanh(summary + theta["tensor_bias"].unsqueeze(-2))
        outputs = torch.cat([summary, tensor_features], dim=-1) @ theta["tensor_output"].mT
        outputs = outputs + theta["tensor_output_bias"].unsqueeze(-2)

        gains = torch.cat([hidden, back, entry_features], dim=-1) @ theta["entry_output"].mT
        gain = torch.where(is_out, gains[..., :1], gains[..., 1:])
        centre = mean_into(gain, incidence.entry_pool, incidence.pool_degree)
        return outputs, (gain - centre.index_select(-2, incidence.entry_pool))[..., 0]


def mean_into(
    values: Float[Tensor, "*batch items channels"],
    index: Int[Tensor, " items"],
    degree: Int[Tensor, "places 1"],
) -> Float[Tensor, "*batch places channels"]:
    """Average `values` over the items that share an index; places without items get 0.

    Args:
        values: one row of channels per item.
        index: the place of each item.
        degree: number of items of each place.
    """
    empty = values.new_zeros(*values.shape[:-2], len(degree), values.shape[-1])
    return empty.index_add(-2, index, values) / degree.clamp(min=1)
