"""Job `compare`: one model and one data set, trained by several optimizers from equal starts."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Annotated, Any

from pydantic import Field, field_validator

from nfopt.errors import unknown_name
from nfopt.progress import Progress
from nfopt.recipe.compare.comparison import Comparison, Method
from nfopt.recipe.inputs import DataOptions, DeviceName, ModelOptions, device_of
from nfopt.recipe.job import JobResult, Recipe, RunContext, job
from nfopt.recipe.optimizers import OptimizerChoice, OptimizerOptions
from nfopt.recipe.plots import Curves, plot_curves
from nfopt.recipe.strict import Count, Seeds
from nfopt.recipe.timing import step_seconds
from nfopt.recipe.trial import Trial, loaded
from nfopt.training import Curve, TrainingConfig


class CompareRecipe(Recipe):
    """The keys of `kind: compare`.

    Attributes:
        data: the data set.
        model: the model; each seed gives all methods the same initial weights.
        optimizers: the methods by key, in the order of the table.
        reference: key of the method whose final validation loss is the target, and whose step time is 1.
        total_steps: optimizer steps of every training.
        batch_size: images per step; each seed gives all methods the same batches.
        evaluate_every: steps between points of the curves.
        seeds: one training per method (and per candidate of a tuned method) and seed.
        device: "auto", "cpu", "cuda" or "cuda:0".
    """

    data: DataOptions
    model: ModelOptions
    optimizers: Annotated[dict[str, OptimizerChoice], Field(min_length=1)]
    reference: str
    total_steps: Count
    batch_size: Count = 128
    evaluate_every: Count = 10
    seeds: Seeds = (0, 1, 2)
    device: DeviceName = "auto"

    @field_validator("reference")
    @classmethod
    def _is_a_method(cls, reference: str, info: Any) -> str:
        if "optimizers" in info.data and reference not in info.data["optimizers"]:
            raise ValueError(str(unknown_name("method", reference, info.data["optimizers"])))
        return reference


def plan_compare(recipe: CompareRecipe) -> list[str]:
    """Return what a run would do."""
    names = trainings(recipe)
    lines = [f"train {recipe.model.name} on {recipe.data.name}, seeds {', '.join(map(str, recipe.seeds))}:"]
    for key, options in recipe.optimizers.items():
        candidates = len(options.candidates())
        tuned = f", the best of {candidates} by validation loss" if candidates > 1 else ""
        lines.append(f"  {options.label or key}: {options.name}{tuned}")
    steps = len(names) * recipe.total_steps
    lines.append(f"{len(names)} different trainings of {recipe.total_steps} steps each: {steps} steps in all")
    lines.append(f"target: the final validation loss of {recipe.reference}, seed by seed")
    return lines


def trainings(recipe: CompareRecipe) -> dict[str, Trial]:
    """Return every training that differs from the others, by the name of its piece."""
    trials = [
        _trial(recipe, candidate, seed)
        for options in recipe.optimizers.values()
        for candidate in options.candidates()
        for seed in recipe.seeds
    ]
    return {trial.name: trial for trial in trials}


def _trial(recipe: CompareRecipe, options: OptimizerOptions, seed: int) -> Trial:
    config = TrainingConfig(recipe.total_steps, recipe.batch_size, recipe.evaluate_every, seed)
    return Trial("", recipe.data, recipe.model, options, config, recipe.device)


@job("compare", CompareRecipe, plan=plan_compare)
def run_compare(recipe: CompareRecipe, context: RunContext) -> JobResult:
    """Train one model with several optimizers from equal starts and compare their losses."""
    for options in recipe.optimizers.values():
        options.check_installed()
    data = loaded(recipe.data)
    context.note_data(data.name, data.content_hash)
    hashes = [trial.options.weight_hashes() for trial in trainings(recipe).values()]
    for name, content_hash in {key: value for found in hashes for key, value in found.items()}.items():
        context.note_data(name, content_hash)
    curves = _train_all(recipe, context)
    methods = [_choose(key, options, recipe, curves) for key, options in recipe.optimizers.items()]
    seconds = context.piece("step-times", lambda: dict(_step_times(recipe, methods)))
    comparison = Comparison(
        title=f"{recipe.model.name} on {data.name}, {recipe.total_steps} steps of {recipe.batch_size}",
        methods=tuple(methods),
        reference=recipe.reference,
        seeds=recipe.seeds,
        evaluate_every=recipe.evaluate_every,
    )
    figure = context.folder / "curves.png"
    plot_curves(
        figure,
        [Curves(method.label, method.runs) for method in methods],
        title=f"{comparison.title}; mean and range of {len(recipe.seeds)} seeds",
        target=comparison.mean_target,
    )
    return JobResult(
        results=comparison.as_json(),
        tables=(comparison.table(seconds),),
        timing={"median_step_seconds": seconds},
        files=(figure,),
    )


def _train_all(recipe: CompareRecipe, context: RunContext) -> dict[str, Curve]:
    """Return the curve of every training by the name of its piece, reporting each and all of them."""
    everything = trainings(recipe)
    total = len(everything) * recipe.total_steps
    curves: dict[str, Curve] = {}

    def report_all(steps: int) -> None:
        done = len(curves) * recipe.total_steps + steps
        context.progress(Progress("all trainings", done, total, f"{len(curves)} of {len(everything)}"))

    def report(progress: Progress) -> None:
        context.progress(progress)
        if progress.done < progress.total:
            report_all(progress.done)

    for name, trial in everything.items():
        report_all(0)
        compute = partial(trial.run, context.state_file(name), report)
        curves[name] = Curve(**context.piece(name, compute))
    report_all(0)
    return curves


def _choose(
    key: str, options: OptimizerOptions, recipe: CompareRecipe, curves: Mapping[str, Curve]
) -> Method:
    """Return the method with the candidate of the lowest mean final validation loss; the first of equals."""
    scored = []
    for candidate in options.candidates():
        runs = tuple(curves[_trial(recipe, candidate, seed).name] for seed in recipe.seeds)
        finals = [run.val_loss[-1] for run in runs if run.diverged_at is None]
        scored.append((candidate, fmean(finals) if len(finals) == len(runs) else None, runs))
    chosen, _, runs = min(scored, key=lambda entry: math.inf if entry[1] is None else entry[1])
    return Method(
        key, options.label or key, chosen, tuple(entry[:2] for entry in scored), runs, tuple(options.tune)
    )


def _step_times(recipe: CompareRecipe, methods: Sequence[Method]) -> dict[str, float]:
    """Return each method's median seconds for forward, backward and optimizer step on one batch."""
    data = loaded(recipe.data)
    return step_seconds(
        {method.key: method.options for method in methods},
        lambda: recipe.model.build(data, recipe.seeds[0]),
        data,
        batch_size=recipe.batch_size,
        total_steps=recipe.total_steps,
        device=device_of(recipe.device),
    )
