"""Job `prune_channels`: a net trained, its channels removed, and trained on; what it costs and can."""

from dataclasses import asdict
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from safetensors.torch import load_file, save_file
from torch import nn

from nfopt.atomic import replacing
from nfopt.data import ImageData
from nfopt.metrics import evaluate
from nfopt.pruning import SCORES, ChannelPruning, PruningPlan, latencies, prune_channels
from nfopt.recipe.inputs import DataOptions, DeviceName, ModelOptions, device_of
from nfopt.recipe.job import JobResult, Recipe, RunContext, Table, job
from nfopt.recipe.optimizers import OptimizerChoice
from nfopt.recipe.prune.options import build
from nfopt.recipe.prune.plots import plot_channels
from nfopt.recipe.strict import Count, Fraction, Index
from nfopt.recipe.trial import loaded
from nfopt.training import TrainingConfig, batch_indices, train

PLAN, WEIGHTS = "plan.safetensors", "model.safetensors"


class PruneChannelsRecipe(Recipe):
    """The keys of `kind: prune_channels`.

    Attributes:
        data: the data set.
        model: the model, initialised from `seed`.
        density: kept fraction of the channels.
        score: a score of single weights, summed over what goes with a channel.
        scope: "layer": of each group of channels; "global": of all together.
        include: patterns of group names; null for every group that can be removed.
        exclude: patterns of groups that stay whole.
        multiple_of: kept counts are rounded up to a multiple of this.
        exact: false also removes channels that norms look at.
        optimizer: of both trainings.
        train_steps: steps before the channels are removed.
        finetune_steps: steps after.
        batch_size: images per step, per batch of the score, and in the measured forward pass.
        score_batches: batches of a score.
        seed: initial weights, batches, and everything random.
        device: "auto", "cpu", "cuda" or "cuda:0".
    """

    data: DataOptions
    model: ModelOptions
    density: Fraction = 0.5
    score: str = "magnitude"
    scope: Literal["layer", "global"] = "layer"
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    multiple_of: Count = 1
    exact: bool = True
    optimizer: OptimizerChoice = Field(default={"name": "adamw", "lr": 3e-3}, validate_default=True)  # pyright: ignore[reportAssignmentType]
    train_steps: Count = 200
    finetune_steps: Count = 100
    batch_size: Count = 128
    score_batches: Count = 10
    seed: Index = 0
    device: DeviceName = "auto"

    @field_validator("score")
    @classmethod
    def _is_a_score(cls, score: str) -> str:
        if score not in SCORES or "train" in SCORES[score].needs:
            known = [name for name in SCORES if "train" not in SCORES[name].needs]
            raise ValueError(f"{score!r} is no score of channels; give one of {', '.join(known)}.")
        return score


def plan_prune_channels(recipe: PruneChannelsRecipe) -> list[str]:
    """Return what a run would do."""
    return [
        f"train {recipe.model.name} on {recipe.data.name} for {recipe.train_steps} steps",
        f"keep {100 * recipe.density:g} % of its channels by {recipe.score}, scope {recipe.scope}; prove it",
        f"train the smaller net for {recipe.finetune_steps} steps",
        "compare parameters, multiply-adds, latency and accuracy; save plan and weights",
    ]


@job("prune_channels", PruneChannelsRecipe, plan=plan_prune_channels)
def run_prune_channels(recipe: PruneChannelsRecipe, context: RunContext) -> JobResult:
    """Train a net, really remove channels from it, train it on, and show what that costs and saves."""
    recipe.optimizer.check_installed()
    data = loaded(recipe.data)
    context.note_data(data.name, data.content_hash)
    timing: dict[str, Any] = {}
    results = context.piece("channels", lambda: _run(recipe, data, context, timing))
    figure = context.folder / "channels.png"
    groups = results["groups"]
    title = f"{recipe.model.name} on {data.name}: {100 * recipe.density:g} % of the channels kept"
    plot_channels(
        figure, [g["group"] for g in groups], [g["size"] for g in groups], [g["kept"] for g in groups], title
    )
    return JobResult(
        results=results,
        tables=(_costs(title, results, timing), _groups(results)),
        timing=timing,
        files=(figure, context.folder / PLAN, context.folder / WEIGHTS),
    )


def _run(
    recipe: PruneChannelsRecipe, data: ImageData, context: RunContext, timing: dict[str, Any]
) -> dict[str, Any]:
    device = device_of(recipe.device)
    model = build(recipe.model, data, recipe.seed, device)
    _train(recipe, model, data, recipe.train_steps, context, "train")
    images = data.train.images[: recipe.batch_size].to(device)
    batches = []
    for step in range(recipe.score_batches):
        index = batch_indices(step, images=len(data.train), batch_size=recipe.batch_size, seed=recipe.seed)
        split = data.train[index].to(device)
        batches.append((split.images, split.labels))
    pruning = prune_channels(
        model,
        images,
        recipe.density,
        recipe.score,
        recipe.scope,
        include=recipe.include,
        exclude=recipe.exclude,
        multiple_of=recipe.multiple_of,
        exact=recipe.exact,
        batches=batches,
        seed=recipe.seed,
        progress=context.progress,
    )
    accuracy = {"before": _accuracy(model, data, device), "removed": _accuracy(pruning.model, data, device)}
    timing["seconds"] = dict(zip(("before", "after"), latencies((model, pruning.model), images), strict=True))
    smaller = pruning.model.train()
    _train(recipe, smaller, data, recipe.finetune_steps, context, "train the smaller net")
    accuracy["finetuned"] = _accuracy(smaller, data, device)
    _save(context, pruning)
    return {
        "accuracy": accuracy,
        "before": asdict(pruning.before),
        "after": asdict(pruning.after),
        "proof": {"passed": pruning.proof.passed, "error": min(pruning.proof.error, 1e300)},
        "groups": [asdict(row) for row in pruning.plan.rows()],
        "held": dict(pruning.held),
    }


def _train(
    recipe: PruneChannelsRecipe, model: nn.Module, data: ImageData, steps: int, context: RunContext, task: str
) -> None:
    device = next(model.parameters()).device
    optimization = recipe.optimizer.build(model, (data.train.images[:2].to(device),), steps)
    config = TrainingConfig(steps, recipe.batch_size, max(steps // 10, 1), recipe.seed)
    train(model, data, optimization, config, progress=context.progress, task=task)


def _accuracy(model: nn.Module, data: ImageData, device: torch.device) -> float:
    split = data.test.to(device)
    return evaluate(model, split.images, split.labels).accuracy


def _save(context: RunContext, pruning: ChannelPruning) -> None:
    pruning.plan.save(context.folder / PLAN)
    state = {key: value.detach().cpu().contiguous() for key, value in pruning.model.state_dict().items()}
    with replacing(context.folder / WEIGHTS) as partial:
        save_file({key: value.clone() for key, value in state.items()}, partial)


def load_pruned(folder: Any, model: nn.Module) -> nn.Module:
    """Return the trained smaller net of a run from its folder, given a fresh model of the same kind."""
    smaller = PruningPlan.load(folder / PLAN).apply(model)
    smaller.load_state_dict(load_file(folder / WEIGHTS))
    return smaller


def _costs(title: str, results: dict[str, Any], timing: dict[str, Any]) -> Table:
    before, after, accuracy = results["before"], results["after"], results["accuracy"]
    seconds = timing.get("seconds")
    rows = [
        (
            "parameters",
            f"{before['parameters']:,}",
            f"{after['parameters']:,}",
            _ratio(before, after, "parameters"),
        ),
        ("multiply-adds", f"{before['macs']:,}", f"{after['macs']:,}", _ratio(before, after, "macs")),
    ]
    if seconds is not None:
        was, now = (f"{1000 * seconds[key]:.2f} ms" for key in ("before", "after"))
        share = _ratio({"s": seconds["before"]}, {"s": seconds["after"]}, "s")
        rows.append(("latency of a batch", was, now, share))
    first = f"{100 * accuracy['before']:.1f} %"
    rows.append(("test accuracy, channels removed", first, f"{100 * accuracy['removed']:.1f} %", ""))
    rows.append(("test accuracy, trained on", first, f"{100 * accuracy['finetuned']:.1f} %", ""))
    proof = results["proof"]
    said = (
        f"Proved in float64: the smaller net equals the original with zeros ({proof['error']:.0e})."
        if proof["passed"]
        else "Not exact: norms looked at channels that are gone."
    )
    return Table(title, ("", "before", "after", "left"), tuple(rows), (said,))


def _ratio(before: dict[str, Any], after: dict[str, Any], key: str) -> str:
    return f"{100 * after[key] / before[key]:.1f} %" if before[key] else ""


def _groups(results: dict[str, Any]) -> Table:
    rows = tuple(
        (g["group"], str(g["size"]), str(g["kept"]), results["held"].get(g["group"], "")[:90])
        for g in results["groups"]
    )
    return Table("Groups of coupled channels", ("group", "channels", "kept", "held by"), rows)
