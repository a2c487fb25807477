"""A heat of the race: one task at one length, and what each method still has to train in it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated

from pydantic import Field, JsonValue

from nfopt.recipe.compare.comparison import Method
from nfopt.recipe.inputs import DataOptions, DeviceName, ModelOptions
from nfopt.recipe.optimizers import OptimizerOptions
from nfopt.recipe.race.search import Search, SearchName, candidate_count, look, mean_or_infinity
from nfopt.recipe.strict import Count, Strict
from nfopt.recipe.trial import Trial
from nfopt.training import Curve, TrainingConfig

KnownCurve = Callable[[str], Curve | None]


class RaceTask(Strict):
    """A task: what is learned, by which model, for how long.

    Attributes:
        data: the data set, with label noise and subset.
        model: the model.
        total_steps: optimizer steps; each length is a heat of its own.
        batch_size: images per step.
        evaluations: looks at the losses per training, spread evenly; how finely steps to a target are known.
        search: how the methods are tuned here; None for the race's own.
    """

    data: DataOptions
    model: ModelOptions
    total_steps: Annotated[tuple[Count, ...], Field(min_length=1)]
    batch_size: Count = 128
    evaluations: Count = 50
    search: SearchName | None = None


@dataclass(frozen=True)
class Heat:
    """One task at one length.

    Attributes:
        task_name: the task's key in the recipe.
        task: the task.
        total_steps: optimizer steps of every training.
        search: how methods are tuned.
        tuning_seeds: seeds by which settings are chosen.
        seeds: seeds that are reported, none of them a tuning seed.
        device: where trainings run.
        settings: by method, options that an earlier race has found: these methods are not tuned.
    """

    task_name: str
    task: RaceTask
    total_steps: int
    search: SearchName
    tuning_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    device: DeviceName
    settings: Mapping[str, Mapping[str, JsonValue]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Task and length."""
        return f"{self.task_name}-{self.total_steps}"

    @property
    def evaluate_every(self) -> int:
        """Steps between points of the curves."""
        return max(self.total_steps // self.task.evaluations, 1)

    def options_of(self, key: str, options: OptimizerOptions) -> OptimizerOptions:
        """Return a method's options in this heat: the known settings in the place of grids."""
        known = self.settings.get(key)
        return options.varied(**known) if known else options

    def trial(self, options: OptimizerOptions, seed: int) -> Trial:
        """Return one training of this heat."""
        config = TrainingConfig(self.total_steps, self.task.batch_size, self.evaluate_every, seed)
        return Trial(self.name, self.task.data, self.task.model, options, config, self.device)

    def planned(self, share: float) -> "Heat":
        """Return the same heat over a share of its steps, for a training that is planned to be shorter."""
        return replace(self, total_steps=max(round(share * self.total_steps), 1))

    def trainings_of(self, key: str, options: OptimizerOptions) -> int:
        """Return how many trainings a method takes in all."""
        options = self.options_of(key, options)
        return candidate_count(options, self.search) * len(self.tuning_seeds) + len(self.seeds)


@dataclass(frozen=True)
class Standing:
    """How far a method is in a heat.

    Attributes:
        needed: trainings to be done next; empty when the method is through.
        done: number of trainings that are there, of `total`.
        total: trainings in all.
        method: the method with its chosen setting and its reported curves; None until it is through.
    """

    needed: tuple[Trial, ...]
    done: int
    total: int
    method: Method | None = None


def standing(heat: Heat, key: str, options: OptimizerOptions, known: KnownCurve) -> Standing:
    """Return how far a method is in a heat, from the curves that are known.

    Args:
        heat: the heat.
        key: the method's key in the recipe.
        options: its options with grids.
        known: returns the curve of the training of that name, None if it is not there.
    """
    total = heat.trainings_of(key, options)
    options = heat.options_of(key, options)
    names: dict[str, Trial] = {}

    def score(candidate: OptimizerOptions) -> float | None:
        trials = [heat.trial(candidate, seed) for seed in heat.tuning_seeds]
        names.update({trial.name: trial for trial in trials})
        curves = [known(trial.name) for trial in trials]
        if any(curve is None for curve in curves):
            return None
        return mean_or_infinity([_final_loss(curve) for curve in curves if curve is not None])

    search = look(options, heat.search, score)
    if search.chosen is None:
        missing = tuple(trial for name, trial in names.items() if known(name) is None)
        return Standing(missing, len(names) - len(missing), total)
    chosen = search.chosen
    reported = [heat.trial(chosen, seed) for seed in heat.seeds]
    runs = [known(trial.name) for trial in reported]
    missing = tuple(trial for trial, run in zip(reported, runs, strict=True) if run is None)
    if missing:
        return Standing(missing, total - len(missing), total)
    tuned = tuple(options.tune) or tuple(heat.settings.get(key, ()))
    curves = tuple(run for run in runs if run is not None)
    return Standing((), total, total, _method(key, options, search, tuned, curves))


def _method(
    key: str, options: OptimizerOptions, search: Search, tuned: tuple[str, ...], runs: tuple[Curve, ...]
) -> Method:
    assert search.chosen is not None
    candidates = tuple((tried, None if loss == float("inf") else loss) for tried, loss in search.tried)
    label = options.label or key
    return Method(key, label, search.chosen, candidates, runs, tuned)


def _final_loss(curve: Curve) -> float | None:
    return curve.val_loss[-1] if curve.diverged_at is None else None
