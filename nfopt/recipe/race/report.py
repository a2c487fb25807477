"""What a race has found: its tables, pictures and JSON values, from the heats as far as they are run."""

from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import JsonValue

from nfopt.recipe.compare.comparison import plain
from nfopt.recipe.job import JobResult, Table
from nfopt.recipe.race.options import RaceRecipe
from nfopt.recipe.race.plots import plot_losses, plot_targets
from nfopt.recipe.race.scores import HeatResult, Pace
from nfopt.recipe.race.tables import (
    StepSeconds,
    final_table,
    missing_table,
    pace_table,
    planned_table,
    step_time_table,
)
from nfopt.recipe.race.verdict import Judge, verdict_json, verdict_table

LIBRARIES = ("torch", "timm", "pytorch-optimizer")


def report(recipe: RaceRecipe, results: list[HeatResult], seconds: StepSeconds, folder: Path) -> JobResult:
    """Return tables, JSON values and pictures, which are written into `folder`.

    Args:
        recipe: the race.
        results: every heat, run or not.
        seconds: seconds per step by heat and method, for the heats that are timed.
        folder: for the pictures.
    """
    labels = {key: options.label or key for key, options in recipe.methods.items()}
    keys = list(recipe.methods)
    base = next(iter(recipe.ablations), None)
    judge = Judge(results, recipe.candidate, recipe.references, recipe.ablations, labels)
    tables: list[Table] = [final_table(result, base, labels) for result in results if result.methods]
    for reference in recipe.references:
        tables.append(pace_table(results, keys, reference, labels))
        if seconds:
            tables.append(pace_table(results, keys, reference, labels, seconds))
    for reference in recipe.references:
        planned = planned_table(results, keys, reference, labels)
        tables += [planned] if planned is not None else []
    if seconds:
        tables.append(step_time_table(results, keys, recipe.references[0], labels, seconds))
    missing = missing_table(results, labels)
    tables += [missing] if missing is not None else []
    tables.append(verdict_table(judge.criteria(), labels[recipe.candidate]))
    files = []
    if any(result.methods for result in results):
        files = [folder / name for name in ("loss_by_steps.png", "loss_by_time.png", "steps_to_target.png")]
        plot_losses(files[0], results, labels, recipe.references[0])
        plot_losses(files[1], results, labels, recipe.references[0], seconds)
        plot_targets(files[2], results, labels, recipe.references)
    return JobResult(
        results={
            "heats": {result.heat.name: _as_json(recipe, result) for result in results},
            "verdict": verdict_json(judge.criteria()),
            "weights": _weights(recipe),
            "libraries": _libraries(),
        },
        tables=tables,
        timing={"step_seconds": {name: dict(known) for name, known in seconds.items()}},
        files=files,
    )


def _as_json(recipe: RaceRecipe, result: HeatResult) -> dict[str, JsonValue]:
    methods: dict[str, JsonValue] = {}
    for key, method in result.methods.items():
        paces = {reference: result.pace(key, reference) for reference in recipe.references}
        shares = {reference: result.planned_pace(key, reference) for reference in recipe.references}
        others = [*recipe.ablations, *recipe.references]
        methods[key] = {
            "chosen": plain(method.options),
            "tuned": list(method.tuned),
            "candidates": [
                {"options": plain(options), "mean_final_val_loss": loss}
                for options, loss in method.candidates
            ],
            "steps_to_target": {
                name: None if pace is None else _pace_as_json(pace) for name, pace in paces.items()
            },
            "steps_to_plan_for": {
                name: None if pace is None else _pace_as_json(pace) for name, pace in shares.items()
            },
            "final_loss_minus": {
                other: {
                    split: None if (found := result.difference(key, other, split)) is None else asdict(found)
                    for split in ("train", "val", "test")
                }
                for other in others
                if other != key
            },
            "runs": [
                {"seed": seed} | asdict(run) for seed, run in zip(recipe.seeds, method.runs, strict=True)
            ],
        }
    return {
        "search": result.heat.search,
        "total_steps": result.heat.total_steps,
        "evaluate_every": result.heat.evaluate_every,
        "methods": methods,
        "missing": dict(result.missing),
    }


def _pace_as_json(pace: Pace) -> dict[str, JsonValue]:
    return {
        "steps": list(pace.steps),
        "fractions": list(pace.fractions),
        "geometric_mean": pace.mean,
        "unreached": pace.unreached,
        "untargeted": pace.untargeted,
    }


def _weights(recipe: RaceRecipe) -> dict[str, JsonValue]:
    return {
        name: digest
        for options in recipe.methods.values()
        for name, digest in options.weight_hashes().items()
    }


def _libraries() -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
