"""The outer optimizer: AdamW on theta, with clipping, a cosine, a pull to nominal, and averaging."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor

from nfopt.errors import NfoptError


@dataclass(frozen=True, slots=True)
class OuterConfig:
    """Settings of the outer optimizer.

    Attributes:
        outer_steps: outer steps in all; sets the cosine.
        learning_rate: at the start, in theta's units per step.
        final_learning_rate: at the end of the cosine.
        betas: Adam's decay rates.
        clip: largest norm of the meta-gradient; a longer one is scaled down.
        pull: strength of the pull towards the nominal point: every step takes `learning rate * pull` of the
            way back to zero in the tensors that were all zero at the start (the output layer).
        averaging: decay of the Polyak average, reached as (1 + step) / (10 + step) grows past it.
    """

    outer_steps: int = 1000
    learning_rate: float = 5e-3
    final_learning_rate: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    pull: float = 0.0
    averaging: float = 0.98

    def __post_init__(self) -> None:
        if self.outer_steps < 1 or self.learning_rate <= 0 or self.clip <= 0:
            raise NfoptError(f"outer_steps, learning_rate and clip must be positive, not {self}.")
        if self.pull < 0 or not 0 <= self.averaging < 1:
            raise NfoptError(
                f"pull must be >= 0 and averaging in [0, 1), not {self.pull} and {self.averaging}."
            )

    def rate(self, step: int) -> float:
        """Return the learning rate of outer step `step`, counted from 0."""
        share = min(1.0, step / self.outer_steps)
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * (
            0.5 + 0.5 * cos(pi * share)
        )


class OuterOptimizer:
    """Theta, its Polyak average and Adam's state.

    Args:
        config: the settings.
        start: (meta-parameters,), where theta starts.
        pulled: (meta-parameters,), True where the pull towards zero acts.
        learned: (meta-parameters,), False where theta stays as it starts; None learns all of it.
    """

    def __init__(
        self, config: OuterConfig, start: Tensor, pulled: Tensor, learned: Tensor | None = None
    ) -> None:
        self.config = config
        self.average = start.detach().clone()
        self._theta = torch.nn.Parameter(start.detach().clone())
        self.learned = torch.ones_like(pulled) if learned is None else learned
        self._pulled = pulled & self.learned
        self._adam = torch.optim.AdamW(
            [self._theta], lr=config.learning_rate, betas=config.betas, weight_decay=0.0
        )

    @property
    def theta(self) -> Tensor:
        """The current theta (meta-parameters,)."""
        return self._theta.detach()

    def step(self, gradient: Tensor, step: int) -> float:
        """Take outer step `step` (from 0) with `gradient`; return the gradient's norm before clipping.

        Raises:
            NfoptError: the gradient is not finite.
        """
        gradient = torch.where(self.learned, gradient, torch.zeros_like(gradient))
        norm = float(gradient.norm())
        if not torch.isfinite(gradient).all():
            raise NfoptError(f"the meta-gradient of outer step {step} is not finite (norm {norm}).")
        rate = self.config.rate(step)
        self._adam.param_groups[0]["lr"] = rate
        self._theta.grad = gradient * min(1.0, self.config.clip / max(norm, 1e-30))
        self._adam.step()
        with torch.no_grad():
            pulled = self._theta * (1 - min(1.0, rate * self.config.pull))
            self._theta.copy_(torch.where(self._pulled, pulled, self._theta))
            decay = min(self.config.averaging, (1 + step) / (10 + step))
            # Not a sum of two products: what stands still must stay, to the bit.
            self.average = torch.lerp(self.average, self._theta.detach(), 1 - decay)
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on, for a checkpoint."""
        adam = self._adam.state[self._theta]
        kept = {"theta": self.theta.clone(), "average": self.average}
        return kept | {f"adam/{name}": value.clone() for name, value in adam.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from `tensors`."""
        with torch.no_grad():
            self._theta.copy_(tensors["theta"])
        self.average = tensors["average"].clone()
        self._adam.state[self._theta] = {
            name.removeprefix("adam/"): value.clone()
            for name, value in tensors.items()
            if name.startswith("adam/")
        }
