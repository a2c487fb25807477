"""Update directions of a matrix, from its gradients and its layer's signals, to be compared with each other.

A direction is a leaf with its own state, for one tensor, seen as matrices (copies, rows, columns) that lie
side by side; its scale is free unless said otherwise. The momentum it turns is handed in, so that directions
differ in nothing else. All of them commute with permutations of the rows and of the columns.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.optim.directions import adam, unit_rms
from nfopt.optim.orthogonalise import orthogonalise

REFRESH = 10  # steps between two decompositions, as published for SOAP
EARLY = (1, 2, 5)  # steps at which factors are young enough to be worth a decomposition more
FACTOR_RATE = 0.95


@dataclass(frozen=True)
class LayerSignals:
    """What a layer saw in one step, one row per example and position.

    Attributes:
        inputs: what the layer's matrix was applied to.
        outputs: gradient of the loss for what came out; its scale is free.
    """

    inputs: Float[Tensor, "copies rows columns"]
    outputs: Float[Tensor, "copies rows out"]


class Direction(Protocol):
    """An update direction; the update goes against it."""

    def __call__(
        self,
        momentum: Float[Tensor, "copies rows columns"],
        grad: Float[Tensor, "copies rows columns"],
        step: int,
        signals: LayerSignals | None,
    ) -> Float[Tensor, "copies rows columns"]:
        """Return the direction at `step`, counted from 1, and fold `grad` into the state."""
        ...


@dataclass
class Orthogonal:
    """Orthogonalised momentum (Jordan et al. 2024), at RMS 1."""

    def __call__(self, momentum: Tensor, grad: Tensor, step: int, signals: LayerSignals | None) -> Tensor:
        return unit_rms(orthogonalise(momentum), 2)


@dataclass
class Raw:
    """The momentum itself."""

    def __call__(self, momentum: Tensor, grad: Tensor, step: int, signals: LayerSignals | None) -> Tensor:
        return momentum


@dataclass
class Sign:
    """Signs of the momentum (Bernstein et al. 2018)."""

    def __call__(self, momentum: Tensor, grad: Tensor, step: int, signals: LayerSignals | None) -> Tensor:
        return momentum.sign()


@dataclass
class Adam:
    """Momentum over the root of the second moment, element by element (Kingma and Ba 2015), at RMS 1."""

    rate: float = 0.99
    second: Tensor | None = None

    def __call__(self, momentum: Tensor, grad: Tensor, step: int, signals: LayerSignals | None) -> Tensor:
        self.second = average(self.second, grad.square(), self.rate)
        return adam(momentum, self.second, 2)


@dataclass
class RowNormalised:
    """Orthogonalised momentum, rows scaled to equal power over time (NorMuon, Li et al. 2025)."""

    rate: float = 0.95
    second: Tensor | None = None

    def __call__(self, momentum: Tensor, grad: Tensor, step: int, signals: LayerSignals | None) -> Tensor:
        turned = unit_rms(orthogonalise(momentum), 2)
        self.second = average(self.second, turned.square().mean(-1, keepdim=True), self.rate)
        return turned * (self.second / (1 - self.rate**step)).clamp(min=1e-12).rsqrt()


@dataclass
class Soap:
    """Adam in the eigenbases of the two Shampoo factors (SOAP, Vyas et al. 2025), at its published scale.

    The first step only finds the bases; later they follow by one QR step every `REFRESH` steps.
    """

    second_rate: float = 0.95
    epsilon: float = 1e-8
    refresh: int = REFRESH
    taken: int = 0
    grams: tuple[Tensor, Tensor] | None = None
    bases: tuple[Tensor, Tensor] | None = None
    second: Tensor | None = None

    def __call__(self, momentum: Tensor, grad: Tensor, step: int, signals: LayerSignals | None) -> Tensor:
        if self.grams is None or self.bases is None or self.second is None:
            left, right = gradient_grams(grad)
            self.grams = average(None, left, FACTOR_RATE), average(None, right, FACTOR_RATE)
            self.bases = eigenbasis(self.grams[0]), eigenbasis(self.grams[1])
            self.second = torch.zeros_like(grad)
            return torch.zeros_like(grad)
        self.taken += 1
        left, right = self.bases
        self.second = average(self.second, (left.mT @ grad @ right).square(), self.second_rate)
        scaled = (left.mT @ momentum @ right) / (self.second.sqrt() + self.epsilon)
        direction = left @ scaled @ right.mT * (1 - self.second_rate**self.taken) ** 0.5
        both = zip(self.grams, gradient_grams(grad), strict=True)
        self.grams = tuple(average(old, new, FACTOR_RATE) for old, new in both)  # pyright: ignore
        if self.taken % self.refresh == 0:
            self._follow()
        return direction

    def _follow(self) -> None:
        """Bring the bases closer to the eigenvectors, largest first, second moments along with them."""
        assert self.grams is not None and self.bases is not None and self.second is not None
        (left, order), (right, columns) = (
            followed(gram, basis) for gram, basis in zip(self.grams, self.bases, strict=True)
        )
        self.second = self.second.take_along_dim(order[..., :, None], -2).take_along_dim(
            columns[..., None, :], -1
        )
        self.bases = left, right


@dataclass
class Preconditioned:
    """F_left^p momentum F_right^q with averaged, damped Kronecker factors.

    Of gradients, F_left = E[g g^T] and F_right = E[g^T g], p = q = -1/4: Shampoo (Gupta et al. 2018). Of
    signals, F_left = E[d d^T] of the back-propagated signals and F_right = E[a a^T] of the activations,
    p = q = -1: K-FAC (Martens and Grosse 2015) with the empirical Fisher matrix; p = 0 and q = -1/2 whitens
    the inputs.

    Attributes:
        left: p; 0 for no left factor.
        right: q.
        damping: added to each factor's eigenvalues, in units of their mean.
        of_signals: whether the factors are those of the layer's signals.
        orthogonal: whether the product is orthogonalised.
        factors: the averages, left (if any) and right.
        powers: what they were raised to at the last refresh.
    """

    left: float
    right: float
    damping: float
    of_signals: bool
    orthogonal: bool = False
    factors: list[Tensor | None] = field(default_factory=lambda: [None, None])
    powers: list[Tensor | None] = field(default_factory=lambda: [None, None])

    def __call__(self, momentum: Tensor, grad: Tensor, step: int, signals: LayerSignals | None) -> Tensor:
        for side, power in enumerate((self.left, self.right)):
            if power == 0:
                continue
            self.factors[side] = now = average(
                self.factors[side], self._factor(side, grad, signals), FACTOR_RATE
            )
            if step in EARLY or step % REFRESH == 0:
                self.powers[side] = damped_power(now / (1 - FACTOR_RATE**step), power, self.damping)
        left, right = self.powers
        turned = momentum if left is None else left @ momentum
        turned = turned if right is None else turned @ right
        return orthogonalise(turned) if self.orthogonal else turned

    def _factor(self, side: int, grad: Tensor, signals: LayerSignals | None) -> Tensor:
        if not self.of_signals:
            return grad @ grad.mT if side == 0 else grad.mT @ grad
        assert signals is not None, "factors of signals need signals"
        rows = signals.outputs if side == 0 else signals.inputs
        return rows.mT @ rows / rows.shape[-2]


@dataclass
class Mixed:
    """(1 - share) base + share other, each at RMS 1; the share may be negative."""

    base: Direction
    other: Direction
    share: float

    def __call__(self, momentum: Tensor, grad: Tensor, step: int, signals: LayerSignals | None) -> Tensor:
        base, other = (unit_rms(part(momentum, grad, step, signals), 2) for part in (self.base, self.other))
        return (1 - self.share) * base + self.share * other


def average(
    running: Float[Tensor, "..."] | None, new: Float[Tensor, "..."], rate: float
) -> Float[Tensor, "..."]:
    """Return rate x running + (1 - rate) x new; a running average that is None counts as zero."""
    return (1 - rate) * new if running is None else torch.lerp(new, running, rate)


def gradient_grams(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return g g^T and g^T g."""
    return grad @ grad.mT, grad.mT @ grad


def eigenbasis(symmetric: Float[Tensor, "*batch side side"]) -> Float[Tensor, "*batch side side"]:
    """Return the eigenvectors as columns, the largest eigenvalue's first."""
    return torch.linalg.eigh(symmetric)[1].flip(-1)


def followed(
    gram: Float[Tensor, "*batch side side"], basis: Float[Tensor, "*batch side side"]
) -> tuple[Tensor, Tensor]:
    """Return the basis one orthogonal iteration later, and which old column each new one comes from."""
    product = gram @ basis
    order = (basis * product).sum(-2).argsort(-1, descending=True)
    return torch.linalg.qr(product.take_along_dim(order[..., None, :], -1))[0], order


def damped_power(
    symmetric: Float[Tensor, "*batch side side"], power: float, damping: float
) -> Float[Tensor, "*batch side side"]:
    """Return (F + damping x mean eigenvalue x I)^power of a positive semidefinite F."""
    scale = symmetric.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None].clamp(min=1e-20)
    if power == -1:
        shift = damping * scale[..., None] * torch.eye(symmetric.shape[-1], dtype=symmetric.dtype)
        return torch.cholesky_inverse(torch.linalg.cholesky(symmetric + shift))
    values, vectors = torch.linalg.eigh(symmetric)
    return (vectors * (values.clamp(min=0) + damping * scale).pow(power)[..., None, :]) @ vectors.mT


def state_tensors(direction: object) -> list[Tensor]:
    """Return every tensor that a direction keeps, its parts' included."""
    found: list[Tensor] = []
    for value in vars(direction).values():
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += [part for part in value if isinstance(part, Tensor)]
        elif hasattr(value, "__dataclass_fields__"):
            found += state_tensors(value)
    return found
