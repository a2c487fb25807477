"""Scores of a race: steps to a tuned method's final loss as fractions of its own, and paired differences.

A target is the final validation loss of a tuned method, seed by seed. A method is there at the first
evaluation at or below it, once; the curves are not smoothed. The tuned method itself is measured by the same
rule, so that its own fraction is 1, and a loss that it passed early and came back to makes no other look
fast. A fraction is steps over those steps of the same seed. A seed that never is there counts as
`unreached_factor` times the full length, and is counted.

The same in planned steps: a training that is planned to be shorter, its schedule ending there, is there if it
ends at or below the target. What counts is the least share of the full length from which on every one does.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

from nfopt.metrics import steps_to_target
from nfopt.recipe.compare.comparison import Method
from nfopt.recipe.race.heat import Heat
from nfopt.spread import spread
from nfopt.training import Curve


@dataclass(frozen=True)
class Pace:
    """How soon a method is at a target.

    Attributes:
        steps: by seed, the step at which it is there; None where it never is, or where there is no target.
        fractions: by seed, steps over the tuned method's own, unreached ones as described above; None where
            the tuned method diverged, so that there is no target.
    """

    steps: tuple[int | None, ...]
    fractions: tuple[float | None, ...]

    @property
    def counted(self) -> list[float]:
        """The fractions of the seeds that have a target."""
        return [fraction for fraction in self.fractions if fraction is not None]

    @property
    def mean(self) -> float | None:
        """The geometric mean over seeds; None if no seed has a target."""
        return geometric_mean(self.counted) if self.counted else None

    @property
    def unreached(self) -> int:
        """Number of seeds that have a target and never are there."""
        pairs = zip(self.steps, self.fractions, strict=True)
        return sum(step is None and fraction is not None for step, fraction in pairs)

    @property
    def untargeted(self) -> int:
        """Number of seeds without a target."""
        return len(self.fractions) - len(self.counted)


@dataclass(frozen=True)
class Difference:
    """A paired difference over seeds: mean, and its standard error (None for a single seed).

    A mean of None says that a seed diverged on either side.
    """

    mean: float | None
    error: float | None

    @property
    def certain(self) -> bool:
        """Whether the mean is further from zero than two standard errors."""
        return self.mean is not None and self.error is not None and abs(self.mean) > 2 * self.error


@dataclass(frozen=True)
class HeatResult:
    """A heat as far as it is run.

    Attributes:
        heat: the heat.
        methods: the methods that are through, by key, in the recipe's order.
        missing: trainings still to be done, by key of a method that is not through.
        unreached_factor: what an unreached target counts as, in full lengths.
        planned: trainings of planned lengths, by method and by share of the full length.
    """

    heat: Heat
    methods: Mapping[str, Method]
    missing: Mapping[str, int]
    unreached_factor: float
    planned: Mapping[str, Mapping[float, Method]] = field(default_factory=dict)

    def pace(self, key: str, reference: str) -> Pace | None:
        """Return how soon a method is at a reference's final loss; None unless both are through."""
        if key not in self.methods or reference not in self.methods:
            return None
        found = [
            self._to_target(run, other)
            for run, other in zip(self.methods[key].runs, self.methods[reference].runs, strict=True)
        ]
        return Pace(tuple(step for step, _ in found), tuple(fraction for _, fraction in found))

    def _to_target(self, run: Curve, reference: Curve) -> tuple[int | None, float | None]:
        """Return steps and fraction of one seed."""
        if reference.diverged_at is not None:
            return None, None
        target = reference.val_loss[-1]
        own = steps_to_target(reference.steps, reference.val_loss, target)
        assert own is not None
        steps = None if run.diverged_at is not None else steps_to_target(run.steps, run.val_loss, target)
        # A target that the untrained model is at already is known no finer than one interval.
        resolution = self.heat.evaluate_every
        counted = self.unreached_factor * self.heat.total_steps if steps is None else max(steps, resolution)
        return steps, counted / max(own, resolution)

    def planned_pace(self, key: str, reference: str) -> Pace | None:
        """Return how short a training may be planned to end at a reference's final loss; None if not run."""
        if key not in self.methods or reference not in self.methods or key not in self.planned:
            return None
        lengths = {**self.planned[key], 1.0: self.methods[key]}
        found = [
            self._least_share([(share, method.runs[seed]) for share, method in lengths.items()], other)
            for seed, other in enumerate(self.methods[reference].runs)
        ]
        steps = [None if share is None else round(share * self.heat.total_steps) for share, _ in found]
        return Pace(tuple(steps), tuple(fraction for _, fraction in found))

    def _least_share(
        self, runs: Sequence[tuple[float, Curve]], reference: Curve
    ) -> tuple[float | None, float | None]:
        """Return share and fraction of one seed, from runs by rising share."""
        if reference.diverged_at is not None:
            return None, None
        least = None
        for share, run in reversed(runs):
            if run.diverged_at is not None or run.val_loss[-1] > reference.val_loss[-1]:
                break
            least = share
        return least, self.unreached_factor if least is None else least

    def difference(
        self, key: str, other: str, split: str, scale: Callable[[float], float] = float
    ) -> Difference | None:
        """Return a method's final loss minus another's, seed by seed; None unless both are through.

        Args:
            key: the method.
            other: the other method.
            split: "train", "val" or "test".
            scale: applied to each loss before; `math.log` makes differences that can be averaged over tasks.
        """
        if key not in self.methods or other not in self.methods:
            return None
        differences = []
        for run, base in zip(self.methods[key].runs, self.methods[other].runs, strict=True):
            if not run.final or not base.final:
                return Difference(None, None)
            differences.append(scale(run.final[split]["loss"]) - scale(base.final[split]["loss"]))
        return mean_and_error(differences)

    @cached_property
    def diverged(self) -> dict[str, int]:
        """Number of reported seeds that diverged, by method."""
        return {
            key: sum(run.diverged_at is not None for run in method.runs)
            for key, method in self.methods.items()
        }


def mean_and_error(values: Sequence[float]) -> Difference:
    """Return mean and standard error."""
    found = spread(values)
    return Difference(found.mean, found.error)


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean of positive values."""
    return math.exp(fmean([math.log(value) for value in values]))


@dataclass(frozen=True)
class Overall:
    """A method's pace over heats.

    Attributes:
        mean: geometric mean over the heats of the mean over seeds; None if no heat has one.
        heats: names of the heats that count.
        unreached: number of seeds in them that never reached the target.
        seeds: number of seeds in them that have a target.
        untargeted: number of seeds left out, because the reference diverged.
    """

    mean: float | None
    heats: tuple[str, ...]
    unreached: int
    seeds: int
    untargeted: int


def overall(
    results: Sequence[HeatResult],
    key: str,
    reference: str,
    weight: Mapping[str, float] | None = None,
    *,
    planned: bool = False,
) -> Overall:
    """Return a method's pace over all heats in which it and the reference are through.

    Args:
        results: the heats.
        key: the method.
        reference: the tuned method whose final loss is the target.
        weight: a factor on each heat's mean by its name (the ratio of step times); None for 1. Heats without
            one are left out.
        planned: in planned steps.
    """
    paces = {
        result.heat.name: pace
        for result in results
        if (pace := (result.planned_pace if planned else result.pace)(key, reference)) is not None
        and pace.mean is not None
        and (weight is None or result.heat.name in weight)
    }
    means = [
        pace.mean * (1.0 if weight is None else weight[name])
        for name, pace in paces.items()
        if pace.mean is not None
    ]
    return Overall(
        geometric_mean(means) if means else None,
        tuple(paces),
        sum(pace.unreached for pace in paces.values()),
        sum(len(pace.counted) for pace in paces.values()),
        sum(pace.untargeted for pace in paces.values()),
    )
