"""Update directions: equivariant functions of the momenta, each scaled to RMS 1.

All commute with permutations of a tensor's rows and of its columns. The one that a tensor nominally follows
(orthogonalised momentum for matrices, Adam for the rest) is mixed with the others by the learned rule.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.optim.orthogonalise import orthogonalise
from nfopt.weightspace.incidence import MatrixLayout

TINY = 1e-30
# Gradients below this share of the largest are rounding noise (a bias before BatchNorm, say), not signal.
NOISE = 1e-6


@dataclass(frozen=True)
class MomentumRates:
    """Decay rates of the running averages of a gradient and of its square.

    Attributes:
        slow: rate of the slow momentum.
        fast: rate of the fast momentum.
        second: rate of the second moment.
    """

    slow: float = 0.95
    fast: float = 0.8
    second: float = 0.99


def unit_rms(tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Scale `tensor` to RMS 1; a zero tensor stays zero."""
    return tensor * tensor.square().mean().clamp(min=TINY).rsqrt()


def liveness(second: Float[Tensor, " tensors"]) -> Float[Tensor, " tensors"]:
    """Return v / (v + (NOISE)^2 max v) per tensor: near 1, but near 0 where the gradient is rounding noise.

    Directions have RMS 1 whatever the gradient's scale; without this factor a tensor whose gradient vanishes
    but for rounding would random-walk at full step size.

    Args:
        second: mean second moment v of each tensor.
    """
    return second / (second + NOISE**2 * second.max() + TINY)


def lookahead(
    grad: Float[Tensor, "..."],
    slow: Float[Tensor, "..."],
    fast: Float[Tensor, "..."],
    fast_share: Float[Tensor, ""],
    step: Float[Tensor, ""],
    rates: MomentumRates,
) -> Float[Tensor, "..."]:
    """Mix the two bias-corrected Nesterov momenta: (1 - s) N(slow) + s N(fast).

    N(m) = b m / (1 - b^t) + (1 - b) g, with b the momentum's rate and t the steps taken, this one included.

    Args:
        grad: gradient of this step.
        slow: slow momentum, this step included.
        fast: fast momentum, this step included.
        fast_share: s; it may lie outside [0, 1].
        step: t.
        rates: the decay rates.
    """
    slow_weight = (1 - fast_share) * rates.slow / (1 - rates.slow**step)
    fast_weight = fast_share * rates.fast / (1 - rates.fast**step)
    grad_weight = (1 - fast_share) * (1 - rates.slow) + fast_share * (1 - rates.fast)
    return slow_weight * slow + fast_weight * fast + grad_weight * grad


def adam(momentum: Float[Tensor, "..."], second: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Momentum over the root of the second moment, element by element (Kingma & Ba 2015), at RMS 1."""
    root = second.sqrt()
    return unit_rms(momentum / (root + NOISE * root.mean() + TINY))


def factored(
    momentum: Float[Tensor, "..."],
    rows: Float[Tensor, "..."],
    cols: Float[Tensor, "..."] | None,
) -> Float[Tensor, "..."]:
    """Momentum over the root of the factored second moment (Shazeer & Stern 2018), at RMS 1.

    Args:
        momentum: the momentum.
        rows: mean of the second moment over all but the output dimensions (kept as size 1).
        cols: mean over all but the input dimensions, or None for a tensor without input dimensions: then all
            elements share one scale.
    """
    if cols is None:
        return unit_rms(momentum)
    scale = rows.sqrt() * cols.sqrt()
    return unit_rms(momentum / (scale + NOISE * scale.mean() + TINY))


def orthogonal(
    momenta: list[Float[Tensor, "..."]], layouts: list[MatrixLayout]
) -> list[Float[Tensor, "..."]]:
    """Orthogonalised momentum (Jordan et al. 2024, Muon), at RMS 1; tensors of one shape go in one batch.

    A convolution kernel is read as one matrix of outputs x (inputs x kernel positions).
    """
    directions: list[Tensor] = list(momenta)
    for members in _equal_shapes(layouts):
        matrices = [layouts[i].to_matrix(momenta[i]).flatten(-2) for i in members]
        stack = orthogonalise(torch.stack(matrices) if len(members) > 1 else matrices[0][None])
        for i, matrix in zip(members, stack.unbind(0), strict=True):
            layout = layouts[i]
            folded = matrix.unflatten(-1, (layout.in_size, layout.rest_size))
            directions[i] = unit_rms(layout.from_matrix(folded))
    return directions


def _equal_shapes(layouts: list[MatrixLayout]) -> list[list[int]]:
    groups: dict[tuple[int, int], list[int]] = {}
    for i, layout in enumerate(layouts):
        groups.setdefault((layout.out_size, layout.in_size * layout.rest_size), []).append(i)
    return list(groups.values())
