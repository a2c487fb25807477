"""How sparse a net is at each step of a training: sparsity schedules, and pruning that follows one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.optim import Optimizer

from nfopt.errors import PruningError
from nfopt.pruning.keep import KeptMask, keep_masked
from nfopt.pruning.mask import PruningMask
from nfopt.pruning.prune import prune
from nfopt.pruning.select import check_density


@dataclass(frozen=True, slots=True)
class SparsitySchedule:
    """The kept fraction as a function of optimizer steps.

    Sparsity s = 1 - density goes from `initial_density` at `start_step` to `final_density` at `end_step`:
    "linear", or "cubic", s(t) = s_f + (s_i - s_f) (1 - t)^3, which prunes fast while much is redundant.

    Source: Zhu and Gupta (arXiv:1710.01878), equation 1.

    Attributes:
        final_density: kept fraction from `end_step` on, in [0, 1].
        end_step: optimizer steps done when the last weights are pruned.
        start_step: optimizer steps done when pruning begins.
        every: steps between prunings.
        initial_density: kept fraction before `start_step`.
        shape: "linear" or "cubic".
    """

    final_density: float
    end_step: int
    start_step: int = 0
    every: int = 1
    initial_density: float = 1.0
    shape: Literal["linear", "cubic"] = "cubic"

    def __post_init__(self) -> None:
        check_density(self.final_density)
        check_density(self.initial_density)
        if self.final_density > self.initial_density:
            raise PruningError(
                f"the density cannot rise from {self.initial_density} to {self.final_density}: "
                "what is pruned stays pruned."
            )
        if not 0 <= self.start_step <= self.end_step:
            raise PruningError(
                f"pruning goes from step {self.start_step} to step {self.end_step}; give "
                "0 <= start_step <= end_step."
            )
        if self.every < 1:
            raise PruningError(f"every is {self.every}; there is at least one step between prunings.")
        if self.shape not in ("linear", "cubic"):
            raise PruningError(f"shape is {self.shape!r}; give linear or cubic.")

    def density_at(self, step: int) -> float:
        """Return the kept fraction once `step` optimizer steps are done."""
        if step >= self.end_step:
            return self.final_density
        if step < self.start_step:
            return self.initial_density
        left = 1 - (step - self.start_step) / (self.end_step - self.start_step)
        power = 3 if self.shape == "cubic" else 1
        return self.final_density + (self.initial_density - self.final_density) * left**power

    def is_due(self, step: int) -> bool:
        """Whether weights are pruned once `step` steps are done."""
        if not self.start_step <= step <= self.end_step:
            return False
        return step == self.end_step or (step - self.start_step) % self.every == 0


MaskMaker = Callable[[nn.Module, float, PruningMask | None], PruningMask]


class GradualPruning:
    """Prunes a model while an optimizer trains it; call `step()` after every `optimizer.step()`.

    What is pruned once stays pruned, at exactly zero.

    Args:
        model: the model in training.
        optimizer: the optimizer that trains it.
        schedule: the densities.
        scope: as for `prune`.
        include: as for `prune`.
        exclude: as for `prune`.
        make: from the model, a density and the present mask to the next; None for magnitudes.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: SparsitySchedule,
        *,
        scope: str = "global",
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        make: MaskMaker | None = None,
    ) -> None:
        def by_magnitude(model: nn.Module, density: float, start: PruningMask | None) -> PruningMask:
            return prune(
                model, density, "magnitude", scope, include=include, exclude=exclude, start=start, rounds=1
            )

        self.model = model
        self.schedule = schedule
        self.steps_done = 0
        self._make = by_magnitude if make is None else make
        self._optimizer = optimizer
        self._kept: KeptMask | None = None
        self._prune_if_due()

    @property
    def mask(self) -> PruningMask | None:
        """The present mask; None before pruning begins."""
        return None if self._kept is None else self._kept.mask

    def step(self) -> None:
        """Count one optimizer step, and prune if the schedule says so."""
        self.steps_done += 1
        self._prune_if_due()

    def resume(self, steps_done: int, mask: PruningMask | None) -> None:
        """Go on from a saved `steps_done` and `mask`; the model and optimizer must be those of then."""
        self.steps_done = steps_done
        if mask is not None:
            self._hold(mask)

    def _prune_if_due(self) -> None:
        if self.schedule.is_due(self.steps_done):
            density = self.schedule.density_at(self.steps_done)
            self._hold(self._make(self.model, density, self.mask))

    def _hold(self, mask: PruningMask) -> None:
        if self._kept is None:
            self._kept = keep_masked(self._optimizer, self.model, mask)
        else:
            self._kept.set_mask(mask)
