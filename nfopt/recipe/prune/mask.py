"""Job `prune_mask`: masks of a fresh model by several scores, layer by layer; none is trained under."""

from typing import Annotated, Any

from pydantic import Field, JsonValue

from nfopt.data import ImageData
from nfopt.pruning import PruningMask
from nfopt.recipe.inputs import DataOptions, DeviceName, ModelOptions, device_of
from nfopt.recipe.job import JobResult, Recipe, RunContext, Table, job
from nfopt.recipe.optimizers import OptimizerChoice
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
from nfopt.recipe.prune.plots import plot_densities
from nfopt.recipe.strict import Count, Fraction, Index
from nfopt.recipe.trial import loaded
from nfopt.training import TrainingConfig


class PruneMaskRecipe(Recipe):
    """The keys of `kind: prune_mask`.

    Attributes:
        data: what scores with gradients see.
        model: the model, initialised from `seed`.
        masks: how the masks are made, by key, in the order of the table.
        density: kept fraction of the weights.
        batch_size: images per batch of a score.
        score_batches: batches of a score.
        optimizer: trains the nets of the score "imp".
        total_steps: steps of each training of the score "imp".
        seed: initial weights, batches, and everything random.
        device: "auto", "cpu", "cuda" or "cuda:0".
    """

    data: DataOptions
    model: ModelOptions
    masks: Annotated[dict[str, MaskOptions], Field(min_length=1)]
    density: Fraction
    batch_size: Count = 128
    score_batches: Count = 10
    optimizer: OptimizerChoice = Field(default={"name": "adamw", "lr": 3e-3}, validate_default=True)  # pyright: ignore[reportAssignmentType]
    total_steps: Count = 200
    seed: Index = 0
    device: DeviceName = "auto"


def plan_prune_mask(recipe: PruneMaskRecipe) -> list[str]:
    """Return what a run would do."""
    lines = [f"masks of {recipe.model.name} with {100 * recipe.density:g} % of the weights kept:"]
    for key, options in recipe.masks.items():
        rounds = "" if options.rounds is None else f", {options.rounds} rounds"
        lines.append(f"  {options.label or key}: {options.score}, scope {options.scope}{rounds}")
    lines.append("draw the density of every layer, save every mask")
    return lines


@job("prune_mask", PruneMaskRecipe, plan=plan_prune_mask)
def run_prune_mask(recipe: PruneMaskRecipe, context: RunContext) -> JobResult:
    """Make pruning masks of a fresh model by several scores and show what each keeps of every layer."""
    data = loaded(recipe.data)
    context.note_data(data.name, data.content_hash)
    patterns = pattern_notes(recipe.masks, build(recipe.model, data, recipe.seed, device_of(recipe.device)))
    found: dict[str, Any] = {}
    files = []
    for done, (key, options) in enumerate(recipe.masks.items()):
        report_into(context.progress, "all masks", done, len(recipe.masks), "masks")
        file = mask_file(context.folder, key, recipe.density, recipe.seed)
        name = f"{key}-{digest(_key(recipe), options.model_dump(mode='json', exclude={'label'}))}"
        found[key] = context.piece(
            name, lambda options=options, file=file: _made(recipe, options, data, file, context)
        )
        files.append(file)
    report_into(context.progress, "all masks", len(recipe.masks), len(recipe.masks), "masks")
    labels = {key: options.label or key for key, options in recipe.masks.items()}
    figure = context.folder / "densities.png"
    layers = list(dict.fromkeys(row["name"] for rows in found.values() for row in rows["layers"]))
    title = f"{recipe.model.name} on {data.name}: {100 * recipe.density:g} % kept, by layer"
    plot_densities(
        figure, layers, {labels[k]: [_density(v, layer) for layer in layers] for k, v in found.items()}, title
    )
    table = _table(title, layers, labels, found, patterns)
    return JobResult(results={"masks": found}, tables=(table,), files=(figure, *files))


def _key(recipe: PruneMaskRecipe) -> list[Any]:
    values = recipe.model_dump(mode="json", exclude={"masks", "output", "provenance", "data", "device"})
    return [values, data_key(recipe.data)]


def _made(
    recipe: PruneMaskRecipe, options: MaskOptions, data: ImageData, file: Any, context: RunContext
) -> JsonValue:
    device = device_of(recipe.device)
    model = build(recipe.model, data, recipe.seed, device)
    config = TrainingConfig(recipe.total_steps, recipe.batch_size, recipe.total_steps, recipe.seed)
    mask = options.make(
        model,
        recipe.density,
        data,
        batch_size=recipe.batch_size,
        score_batches=recipe.score_batches,
        seed=recipe.seed,
        train=masked_training(recipe.optimizer, data, config, context.progress, "train for imp"),
        progress=context.progress,
    )
    mask.save(file)
    return mask_rows(mask)


def mask_rows(mask: PruningMask) -> dict[str, JsonValue]:
    """Return a mask's counts as JSON values."""
    return {
        "density": mask.density,
        "empty_layers": list(mask.empty_layers),
        "layers": [
            {"name": row.name, "shape": list(row.shape), "kept": row.kept, "total": row.total}
            for row in mask.rows()
        ],
    }


def _row(found: Any, layer: str) -> Any:
    return next((row for row in found["layers"] if row["name"] == layer), None)


def _density(found: Any, layer: str) -> float:
    row = _row(found, layer)
    return 1.0 if row is None else row["kept"] / row["total"]


def _table(
    title: str, layers: list[str], labels: dict[str, str], found: dict[str, Any], patterns: tuple[str, ...]
) -> Table:
    rows = []
    for layer in layers:
        row = next(row for rows_ in found.values() if (row := _row(rows_, layer)) is not None)
        shape = " x ".join(map(str, row["shape"]))
        kept = [_row(found[key], layer) for key in labels]
        rows.append((layer, shape, *(_cell(each) for each in kept)))
    total = [100 * found[key]["density"] for key in labels]
    rows.append(("all pruned", "", *(f"{each:.2f} %" for each in total)))
    empty = [f"{labels[k]}: nothing is kept of {', '.join(v['empty_layers'])}" for k, v in found.items()
             if v["empty_layers"]]  # fmt: skip
    notes = ("Each cell: the share of the layer's weights that is kept.", *empty, *patterns)
    return Table(title, ("layer", "shape", *labels.values()), tuple(rows), notes)


def _cell(row: Any) -> str:
    return "whole" if row is None else f"{100 * row['kept'] / row['total']:.1f} %"
