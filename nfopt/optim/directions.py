"""Update directions: equivariant functions of the momenta, each scaled to RMS 1.

All commute with permutations of a tensor's rows and of its columns. Matrices follow orthogonalised momentum,
all other tensors Adam: one direction per tensor, as mixing in a second one did not pay in first measurements
on Fashion-MNIST (tests/benchmarks/directions.md says which are finished).
Tensors may have leading dimensions, in which copies lie side by side; `dims` counts a copy's own dimensions.
"""

from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.optim.orthogonalise import orthogonalise
from nfopt.optim.strips import Strip
from nfopt.weightspace.incidence import MatrixLayout

TINY = 1e-30  # keeps roots and logarithms of zero, and their derivatives, finite
# Gradients below this share of the largest tensor's are rounding noise (a bias before BatchNorm), not signal.
NOISE = 1e-6
# Gradients below this share of their own largest mean that the tensor has arrived: data learned by heart.
ARRIVED = 0.2
# The least factor on the nominal decay, how soon it comes to 1 as a gradient goes, and in how many steps.
DECAY_LEAST, DECAY_EASED, DECAY_YOUNG = 0.3, 0.4, 800


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


def mean(tensor: Float[Tensor, "..."], dims: int) -> Float[Tensor, "..."]:
    """Average over the last `dims` dimensions, which stay with size 1."""
    return tensor.mean(dim=tuple(range(-dims, 0)), keepdim=True) if dims else tensor


def total_mean(tensor: Float[Tensor, "..."], dims: int) -> Float[Tensor, "*batch"]:
    """Average over the last `dims` dimensions, which go."""
    return tensor.mean(dim=tuple(range(-dims, 0))) if dims else tensor


def unit_rms(tensor: Float[Tensor, "..."], dims: int) -> Float[Tensor, "..."]:
    """Scale `tensor` to RMS 1; a zero tensor stays zero."""
    if not dims:
        return tensor * tensor.square().clamp(min=TINY).rsqrt()
    norm = torch.linalg.vector_norm(tensor, dim=tuple(range(-dims, 0)), keepdim=True)
    return tensor / (norm * prod(tensor.shape[-dims:]) ** -0.5).clamp(min=TINY**0.5)


def spread(scalar: Float[Tensor, "*batch"], dims: int) -> Float[Tensor, "..."]:
    """Append `dims` dimensions of size 1, so that one number per copy multiplies its tensor."""
    return scalar.reshape(scalar.shape + (1,) * dims) if scalar.dim() else scalar


def liveness(
    power: Float[Tensor, "*batch tensors"], peak: Float[Tensor, "*batch tensors"]
) -> Float[Tensor, "*batch tensors"]:
    """Return (1 + a^2) v / (v + max(a^2 peak, b^2 max v)): 1 at the peak, near 0 where the gradient has gone.

    Directions have RMS 1 whatever the gradient's scale; without this factor a tensor whose gradient vanishes
    but for rounding would random-walk, and a model that fits its data exactly would grow its weights for
    ever. It takes the part of Adam's epsilon, but does not depend on the loss's scale. On 2,000 images of
    Fashion-MNIST seen 32 times, a = ARRIVED = 0.2 ends at a validation loss of 0.51, 0.1 at 0.59 and 0.005
    at 1.39; where gradients stay noisy (one pass over 50,000 images) all end at 0.29. b = NOISE.

    Args:
        power: averaged mean square v of each tensor's gradient.
        peak: the largest v of each tensor but for the first few steps.
    """
    largest = power.amax(dim=-1, keepdim=True)
    return (1 + ARRIVED**2) * power / (power + torch.maximum(ARRIVED**2 * peak, NOISE**2 * largest) + TINY)


def decay_factor(
    alive: Float[Tensor, "*batch tensors"], step: Float[Tensor, "*batch tensors"]
) -> Float[Tensor, "*batch tensors"]:
    """Return the factor on the nominal weight decay: 0.3 at first, 1 where gradients have gone or time has.

    1 - 0.7 (1 - k / 800)_+ c (1 - g) / (c + g) in step k, with g = 1 - alive and c = 0.4. While there is
    still much to learn, decay is in its way. When gradients go, or the same images have come again and
    again, it is what generalises. tests/benchmarks/decays.md says what this brings.

    Args:
        alive: `liveness`; what is above 1 counts as 1.
        step: k, this one included.
    """
    gone = (1 - alive).clamp(min=0)
    living = DECAY_EASED * (1 - gone) / (gone + DECAY_EASED)
    return 1 - (1 - DECAY_LEAST) * (1 - step / DECAY_YOUNG).clamp(min=0) * living


def lookahead_weights(
    fast_share: Float[Tensor, "*batch tensors"], step: Float[Tensor, "*batch tensors"], rates: MomentumRates
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights of slow momentum, fast momentum and gradient in the mixed Nesterov momentum.

    (1 - s) N(slow) + s N(fast) with N(m) = b m / (1 - b^t) + (1 - b) g, b the momentum's rate, t the steps
    taken, this one included.

    Args:
        fast_share: s; it may lie outside [0, 1].
        step: t.
        rates: the decay rates.
    """
    slow = (1 - fast_share) * rates.slow / (1 - rates.slow**step)
    fast = fast_share * rates.fast / (1 - rates.fast**step)
    return slow, fast, (1 - fast_share) * (1 - rates.slow) + fast_share * (1 - rates.fast)


def adam(momentum: Float[Tensor, "..."], second: Float[Tensor, "..."], dims: int) -> Float[Tensor, "..."]:
    """Momentum over the root of the second moment, element by element (Kingma & Ba 2015), at RMS 1."""
    root = (second + TINY).sqrt()
    return unit_rms(momentum / (root + (NOISE * mean(root, dims) + TINY)), dims)


def adam_along(
    momentum: Float[Tensor, "*batch elements"], second: Float[Tensor, "*batch elements"], strip: Strip
) -> Float[Tensor, "*batch elements"]:
    """Return `adam` of every tensor of a strip."""
    root = (second + TINY).sqrt()
    move = momentum / (root + strip.spread(NOISE * strip.means(root) + TINY))
    return move * strip.spread(strip.means(move.square()).clamp(min=TINY).rsqrt())


def orthogonal(
    momenta: list[Float[Tensor, "..."]], layouts: list[MatrixLayout], products: torch.dtype | None = None
) -> list[Float[Tensor, "..."]]:
    """Orthogonalised momentum (Jordan et al. 2024, Muon), at RMS 1; tensors of one shape go in one batch.

    A convolution kernel is read as one matrix of outputs x (inputs x kernel positions).

    Args:
        momenta: the momenta.
        layouts: how they are read as matrices.
        products: dtype of the matrix products, as in `orthogonalise`.
    """
    directions: list[Tensor] = list(momenta)
    for members in equal_shapes(layouts):
        some = [momenta[i] for i in members]
        found = orthogonal_of_one_shape(some, [layouts[i] for i in members], products)
        for i, direction in zip(members, found, strict=True):
            directions[i] = direction
    return directions


def orthogonal_of_one_shape(
    momenta: list[Float[Tensor, "..."]], layouts: list[MatrixLayout], products: torch.dtype | None = None
) -> list[Float[Tensor, "..."]]:
    """Return `orthogonal` of tensors whose matrices have the same shape, at least one of them."""
    matrices = [_as_matrix(m, layout) for m, layout in zip(momenta, layouts, strict=True)]
    if len(matrices) == 1:
        found = [unit_rms(orthogonalise(matrices[0], products=products), 2)]
    else:
        stack = orthogonalise(torch.stack(matrices, dim=-3), products=products)
        found = list(unit_rms(stack, 2).unbind(-3))
    return [_as_tensor(matrix, layout) for matrix, layout in zip(found, layouts, strict=True)]


def _as_matrix(tensor: Float[Tensor, "..."], layout: MatrixLayout) -> Float[Tensor, "*batch out in"]:
    """Return a tensor as a matrix of outputs x (inputs x kernel positions)."""
    if _in_order(layout):
        return tensor if len(layout.shape) == 2 else tensor.flatten(len(layout.out_dims) - len(layout.shape))
    return layout.to_matrix(tensor).flatten(-2)


def _as_tensor(matrix: Float[Tensor, "*batch out in"], layout: MatrixLayout) -> Float[Tensor, "..."]:
    """Undo `_as_matrix`."""
    if _in_order(layout):
        return matrix if len(layout.shape) == 2 else matrix.unflatten(-1, layout.shape[1:])
    return layout.from_matrix(matrix.unflatten(-1, (layout.in_size, layout.rest_size)))


def _in_order(layout: MatrixLayout) -> bool:
    """Whether the rows come first, and the columns and kernel positions behind them as they lie."""
    return layout.out_dims == (0,) and layout.order == tuple(range(len(layout.shape)))


def equal_shapes(layouts: list[MatrixLayout]) -> list[list[int]]:
    """Return the positions of layouts in groups that have the same matrices."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, layout in enumerate(layouts):
        groups.setdefault((layout.out_size, layout.in_size * layout.rest_size), []).append(i)
    return list(groups.values())
