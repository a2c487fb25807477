"""The built-in step-size schedule: a short linear warm-up, then a linear decay to a small final step."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from nfopt.errors import OptimizerError

WARMUP = 0.02
FINAL = 0.02
WARMUP_STEPS_WITHOUT_END = 100
PROGRESS_WITHOUT_END = 0.25


def linear_schedule(progress: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return the factor on the step size at `progress` = (steps done + 1) / total steps, in (0, 1].

    It rises linearly over the first 2 % of the training, and falls linearly from there to 2 % at the end.
    """
    return (progress / WARMUP).clamp(max=1.0) * (1.0 - progress).clamp(min=FINAL)


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
        return min(progress / WARMUP, 1.0) * max(1.0 - progress, FINAL)
