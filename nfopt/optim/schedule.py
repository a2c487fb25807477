"""The built-in step-size schedule: a warm-up, then a decay linear in progress and with the root of the age.

    s(k) = min(k / (0.02 T), 1)  max(1 - k / T, 0.02)  sqrt((150 + 300) / (min(k, 5000) + 300))    step k of T

The root shortens the steps of long trainings. Directions of RMS 1 do not get shorter by themselves, noise
asks for it, and tuned baselines do it: from 500 to 2,000 steps of Fashion-MNIST Muon's best learning rate
falls by 4. tests/benchmarks/schedules.md says what it brings. Past 5,000 steps nothing was measured, and it
falls no further.
"""

from dataclasses import dataclass
from math import sqrt

from jaxtyping import Float
from torch import Tensor

from nfopt.errors import OptimizerError

WARMUP = 0.02
FINAL = 0.02
UNIT_AGE, AGEING, LAST_AGE = 150, 300, 5_000  # in steps; at UNIT_AGE the root is 1
WARMUP_STEPS_WITHOUT_END = 100
PROGRESS_WITHOUT_END = 0.25


def built_in_schedule(
    progress: Float[Tensor, "*#shape"], step: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Return the factor s on the step size.

    Args:
        progress: steps taken over total steps, this one included, in (0, 1].
        step: steps taken, this one included.
    """
    linear = (progress / WARMUP).clamp(max=1.0) * (1.0 - progress).clamp(min=FINAL)
    return linear * ((UNIT_AGE + AGEING) / (step.clamp(max=LAST_AGE) + AGEING)).sqrt()


@dataclass(frozen=True)
class Schedule:
    """Progress and step-size factor of a training of `total_steps` optimizer steps.

    Attributes:
        total_steps: number of optimizer steps, or None when the end is not known: then the step size stays
            constant after 100 steps of warm-up, and an outside scheduler may lower it.

    Raises:
        OptimizerError: `total_steps` is not a positive integer.
    """

    total_steps: int | None

    def __post_init__(self) -> None:
        total = self.total_steps
        if total is not None and (isinstance(total, bool) or not isinstance(total, int) or total < 1):
            raise OptimizerError(
                f"total_steps is {total!r}; give the number of optimizer steps of the whole training "
                "(epochs x batches per epoch / accumulated batches), or None for a constant step size."
            )

    def progress(self, step: int) -> float:
        """Return the progress in (0, 1] of the step after `step` others; it stays at 1 past the end."""
        return PROGRESS_WITHOUT_END if self.total_steps is None else min((step + 1) / self.total_steps, 1.0)

    def factor(self, step: int) -> float:
        """Return the factor on the step size of the step after `step` others."""
        if self.total_steps is None:
            return min(1.0, (step + 1) / WARMUP_STEPS_WITHOUT_END)
        progress = self.progress(step)
        age = min(step + 1, self.total_steps, LAST_AGE)
        linear = min(progress / WARMUP, 1.0) * max(1.0 - progress, FINAL)
        return linear * sqrt((UNIT_AGE + AGEING) / (age + AGEING))
