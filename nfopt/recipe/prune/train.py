"""Job `prune_train`: nets trained under masks, or pruned while they train, and their controls."""

from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, JsonValue, field_validator
from torch import nn

from nfopt.data import ImageData
from nfopt.progress import ProgressCallback
from nfopt.pruning import GradualPruning, PruningMask, SparsitySchedule, keep_masked
from nfopt.recipe.inputs import DataOptions, DeviceName, ModelOptions, device_of
from nfopt.recipe.job import JobResult, Recipe, RunContext, Table, job
from nfopt.recipe.optimizers import OptimizerChoice
from nfopt.recipe.prune.mask import mask_rows
from nfopt.recipe.prune.options import (
    MaskOptions,
    build,
    data_key,
    digest,
    mask_file,
    masked_training,
    pattern_notes,
    report_into,
)
from nfopt.recipe.prune.plots import plot_accuracies, plot_densities
from nfopt.recipe.strict import Count, Fraction, Index
from nfopt.recipe.trial import loaded
from nfopt.spread import spread
from nfopt.training import Curve, TrainingConfig, train

DENSE = "dense"
RESEED = 1_000_003


class PrunedTraining(MaskOptions):
    """One way to train a pruned net.

    Attributes:
        when: "init": the mask is made before the training, from the initial weights (and, for "imp", from
            trainings of its own); "gradual": by magnitude while the net trains, from full to `density` over
            the middle of the training, a fifth to three fifths of it.
        shape: of gradual pruning: how sparsity rises, "cubic" (fast at first) or "linear".
        control: "shuffled": each layer's mask permuted at random; "reinitialised": other initial weights
            under the same mask; the controls of Frankle et al. (arXiv:2009.08576).
    """

    when: Literal["init", "gradual"] = "init"
    shape: Literal["cubic", "linear"] = "cubic"
    control: Literal["none", "shuffled", "reinitialised"] = "none"


class PruneTrainRecipe(Recipe):
    """The keys of `kind: prune_train`.

    Attributes:
        data: the data set.
        model: the model; each seed gives all methods the same initial weights.
        methods: the ways to prune, by key, in the order of the table; the dense net is trained besides.
        densities: kept fractions.
        optimizer: of every training.
        total_steps: steps of every training; "imp" takes as many for each of its rounds besides.
        batch_size: images per step and per batch of a score.
        score_batches: batches of a score.
        seeds: one training per method, density and seed.
        device: "auto", "cpu", "cuda" or "cuda:0".
    """

    data: DataOptions
    model: ModelOptions
    methods: Annotated[dict[str, PrunedTraining], Field(min_length=1)]
    densities: Annotated[tuple[Fraction, ...], Field(min_length=1)]
    optimizer: OptimizerChoice
    total_steps: Count
    batch_size: Count = 128
    score_batches: Count = 10
    seeds: Annotated[tuple[Index, ...], Field(min_length=1)] = (0, 1, 2)
    device: DeviceName = "auto"

    @field_validator("densities", "seeds")
    @classmethod
    def _are_distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise ValueError("must be distinct.")
        return values

    @field_validator("methods")
    @classmethod
    def _are_possible(cls, methods: dict[str, PrunedTraining]) -> dict[str, PrunedTraining]:
        for key, method in methods.items():
            if key == DENSE:
                raise ValueError(f"a method cannot be called {DENSE!r}; that is the net without a mask.")
            if method.when == "gradual" and (method.score != "magnitude" or method.control != "none"):
                raise ValueError(f"{key}: gradual pruning goes by magnitude and has no control.")
            if method.when == "gradual" and method.fixed_density is not None:
                raise ValueError(f"{key}: gradual pruning has no scope {method.scope}.")
            if method.when == "init" and method.shape != "cubic":
                raise ValueError(f"{key}: shape is a setting of gradual pruning; give when: gradual.")
        return methods


@dataclass(frozen=True)
class Part:
    """One training: a method at a density with a seed; the dense net has no method."""

    key: str
    method: PrunedTraining | None
    density: float
    seed: int


def parts_of(recipe: PruneTrainRecipe) -> list[Part]:
    """Return every training of a recipe, seed by seed."""
    parts = []
    for seed in recipe.seeds:
        parts.append(Part(DENSE, None, 1.0, seed))
        for density in recipe.densities:
            parts += [Part(key, method, density, seed) for key, method in recipe.methods.items()]
    return parts


def plan_prune_train(recipe: PruneTrainRecipe) -> list[str]:
    """Return what a run would do."""
    kept = ", ".join(f"{100 * density:g} %" for density in recipe.densities)
    lines = [f"train {recipe.model.name} on {recipe.data.name} with {kept} of the weights kept:"]
    for key, method in recipe.methods.items():
        how = f"at the start, {method.score}, {method.scope}"
        if method.when == "gradual":
            how = f"while it trains, {method.shape}, {method.scope}"
        control = "" if method.control == "none" else f", {method.control}"
        lines.append(f"  {method.label or key}: {how}{control}")
    count = len(parts_of(recipe))
    lines.append(f"{count} trainings of {recipe.total_steps} steps, those of the score imp not counted")
    return lines


@job("prune_train", PruneTrainRecipe, plan=plan_prune_train)
def run_prune_train(recipe: PruneTrainRecipe, context: RunContext) -> JobResult:
    """Train nets under pruning masks, or prune them while they train, and compare their test accuracy."""
    recipe.optimizer.check_installed()
    data = loaded(recipe.data)
    context.note_data(data.name, data.content_hash)
    for name, content_hash in recipe.optimizer.weight_hashes().items():
        context.note_data(name, content_hash)
    patterns = pattern_notes(
        recipe.methods, build(recipe.model, data, recipe.seeds[0], device_of(recipe.device))
    )
    parts = parts_of(recipe)
    found: list[Any] = []
    for done, part in enumerate(parts):
        report_into(context.progress, "all trainings", done, len(parts), "trainings")
        found.append(context.piece(_name(recipe, part), partial(_train_part, recipe, part, data, context)))
    report_into(context.progress, "all trainings", len(parts), len(parts), "trainings")
    results: list[Any] = [
        {"method": part.key, "density": part.density, "seed": part.seed, **each}
        for part, each in zip(parts, found, strict=True)
    ]
    return JobResult(
        results={"trainings": results},
        tables=(_table(recipe, results, patterns),),
        files=_pictures(recipe, results, context),
    )


def _name(recipe: PruneTrainRecipe, part: Part) -> str:
    method = None if part.method is None else part.method.model_dump(mode="json", exclude={"label"})
    shared = recipe.model_dump(
        mode="json", include={"model", "optimizer", "total_steps", "batch_size", "score_batches"}
    )
    hashed = digest(shared, method, data_key(recipe.data), recipe.optimizer.fingerprint(), part.density)
    return f"{part.key}-{part.density:g}-{hashed}-seed{part.seed}"


def _train_part(recipe: PruneTrainRecipe, part: Part, data: ImageData, context: RunContext) -> JsonValue:
    device = device_of(recipe.device)
    config = TrainingConfig(
        recipe.total_steps, recipe.batch_size, max(recipe.total_steps // 10, 1), part.seed
    )
    task = f"{part.key} {100 * part.density:g} %, seed {part.seed}"
    model = build(recipe.model, data, part.seed, device)
    mask = None
    if part.method is not None and part.method.when == "init":
        mask, model = _mask_and_start(recipe, part, model, data, config, context.progress)
        mask.save(mask_file(context.folder, part.key, part.density, part.seed))
    optimization = recipe.optimizer.build(model, (data.train.images[:2].to(device),), recipe.total_steps)
    gradual = None
    state_file = context.state_file(_name(recipe, part))
    if mask is not None:
        keep_masked(optimization.optimizer, model, mask)
    elif part.method is not None:
        gradual = _gradual(part.method, part.density, model, optimization.optimizer, recipe.total_steps)
        state_file = None  # its mask is not in the training's state: it begins anew
    curve = train(
        model, data, optimization, config, state_file=state_file, progress=context.progress, task=task
    )
    mask = gradual.mask if gradual is not None else mask
    found: dict[str, Any] = {"curve": asdict(curve), "mask": None if mask is None else mask_rows(mask)}
    if mask is not None and not _is_kept(model, mask):
        raise AssertionError("a pruned weight is not zero at the end")
    return found


def _mask_and_start(
    recipe: PruneTrainRecipe,
    part: Part,
    model: nn.Module,
    data: ImageData,
    config: TrainingConfig,
    progress: ProgressCallback,
) -> tuple[PruningMask, nn.Module]:
    """Return the mask of a training and the net that it starts from."""
    assert part.method is not None
    mask = part.method.make(
        model,
        part.density,
        data,
        batch_size=recipe.batch_size,
        score_batches=recipe.score_batches,
        seed=part.seed,
        train=masked_training(recipe.optimizer, data, config, progress, f"{part.key}: train for its mask"),
        progress=progress,
    )
    if part.method.control == "shuffled":
        mask = mask.shuffled(torch.Generator().manual_seed(part.seed + RESEED))
    if part.method.control == "reinitialised":
        model = build(recipe.model, data, part.seed + RESEED, next(model.parameters()).device)
    return mask, model


def _gradual(
    method: PrunedTraining,
    density: float,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    total_steps: int,
) -> GradualPruning:
    start, end = total_steps // 5, max(total_steps * 3 // 5, 1)
    every = max((end - start) // 20, 1)
    schedule = SparsitySchedule(density, end, start, every=every, shape=method.shape)
    pruning = GradualPruning(
        model, optimizer, schedule, scope=method.scope, include=method.include, exclude=method.exclude
    )
    optimizer.register_step_post_hook(lambda *_: pruning.step())
    return pruning


def _is_kept(model: nn.Module, mask: PruningMask) -> bool:
    return all(
        bool((model.get_parameter(n).detach().cpu()[~kept] == 0).all()) for n, kept in mask.kept.items()
    )


def _accuracies(results: list[Any], key: str, density: float) -> list[float]:
    """Return the test accuracy of every seed; that of a training that diverged is 0."""
    return [
        Curve(**each["curve"]).final.get("test", {}).get("accuracy", 0.0)
        for each in results
        if each["method"] == key and each["density"] == density
    ]


def _table(recipe: PruneTrainRecipe, results: list[Any], patterns: tuple[str, ...]) -> Table:
    dense = _cell(_accuracies(results, DENSE, 1.0))
    rows = [("dense", *(dense for _ in recipe.densities), "")]
    for key, method in recipe.methods.items():
        cells = [_cell(_accuracies(results, key, density)) for density in recipe.densities]
        empty = sum(bool(each["mask"]["empty_layers"]) for each in results if each["method"] == key)
        rows.append((method.label or key, *cells, str(empty) if empty else ""))
    title = f"{recipe.model.name} on {recipe.data.name}: test accuracy (%), {recipe.total_steps} steps"
    columns = (
        "method",
        *(f"{100 * density:g} %\nkept" for density in recipe.densities),
        "with an\nempty layer",
    )
    error = " and standard error" if len(recipe.seeds) > 1 else ""
    notes = (
        f"Mean{error} over seeds {', '.join(map(str, recipe.seeds))}; the dense net keeps all weights.",
        *patterns,
    )
    return Table(title, columns, tuple(rows), notes)


def _cell(accuracies: list[float]) -> str:
    return f"{spread(accuracies).times(100):.1f}"


def _pictures(recipe: PruneTrainRecipe, results: list[Any], context: RunContext) -> tuple[Any, ...]:
    labels = {key: method.label or key for key, method in recipe.methods.items()}
    title = (
        f"{recipe.model.name} on {recipe.data.name}, {recipe.total_steps} steps, {len(recipe.seeds)} seeds"
    )
    accuracies, densities = context.folder / "accuracies.png", context.folder / "densities.png"
    lines = {labels[k]: [_accuracies(results, k, d) for d in recipe.densities] for k in labels}
    plot_accuracies(accuracies, recipe.densities, lines, title)
    least = min(recipe.densities)
    masks = {
        each["method"]: each["mask"]["layers"]
        for each in reversed(results)
        if each["mask"] is not None and each["density"] == least
    }
    layers = list(dict.fromkeys(row["name"] for rows in masks.values() for row in rows))
    by_layer = {key: {row["name"]: row["kept"] / row["total"] for row in rows} for key, rows in masks.items()}
    plot_densities(
        densities,
        layers,
        {
            labels[key]: [by_layer[key].get(layer, 1.0) for layer in layers]
            for key in labels
            if key in by_layer
        },
        f"{title}: {100 * least:g} % kept, first seed",
    )
    return accuracies, densities
