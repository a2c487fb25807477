"""Job `portrait`: pictures of what a rule decides, and a table of what its parts are worth."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pydantic import Field, JsonValue
from torch import Tensor

from nfopt.atomic import replacing
from nfopt.checkpoints import digest_of
from nfopt.errors import RecipeError
from nfopt.meta.lesions import LESIONS
from nfopt.meta.portrait import HELD, NOMINAL, Decisions, lesion_losses, record
from nfopt.meta.rules import LearnedRules
from nfopt.meta.sources import load_source
from nfopt.meta.task import Task, TaskConfig
from nfopt.optim.rule_checkpoint import read_rule
from nfopt.optim.schedule import built_in_schedule
from nfopt.progress import Progress
from nfopt.recipe import records
from nfopt.recipe.job import JobResult, Recipe, RunContext, Table, job
from nfopt.recipe.meta.heldout import DIGITS_MLP
from nfopt.recipe.strict import Count, Index
from nfopt.seeds import derive_seed


class PortraitRecipe(Recipe):
    """The keys of `kind: portrait`: a checkpoint, tasks by name, and how many instances of each."""

    checkpoint: str = "default"
    tasks: dict[str, Annotated[TaskConfig, records.record(TaskConfig)]] = Field(
        default={"digits-mlp": DIGITS_MLP}, min_length=1
    )
    seed: Index = 0
    seeds: Count = 5


def plan_portrait(recipe: PortraitRecipe) -> list[str]:
    """Return what a run would do."""
    return [
        f"{name}: train {recipe.seeds} instances for {task.horizon} steps on {task.source} with the rule, "
        f"its nominal point and {len(LESIONS)} lesions of it; draw its decisions"
        for name, task in recipe.tasks.items()
    ]


@job("portrait", PortraitRecipe, plan=plan_portrait)
def run_portrait(recipe: PortraitRecipe, context: RunContext) -> JobResult:
    """Draw what a learned rule decides over layers and time, and measure what its parts are worth."""
    config, theta, name = read_rule(recipe.checkpoint)
    if not theta:
        raise RecipeError(f"checkpoint {recipe.checkpoint!r} has no learned part to portray.")
    context.note_data(f"checkpoint {name}", digest_of(theta))
    rules = LearnedRules(config)
    found: dict[str, Any] = {}
    files = []
    for index, (task_name, task_config) in enumerate(recipe.tasks.items()):
        context.progress(Progress("portrait", index, len(recipe.tasks), task_name))
        side = task_config.architecture.image[1]
        context.note_data(f"{task_config.source}-{side}", load_source(task_config.source, side).content_hash)
        task = Task.make(task_config)
        seeds = [derive_seed(recipe.seed, "portrait", i) for i in range(recipe.seeds)]
        found[task_name] = context.piece(
            f"{task_name}-{digest_of(theta)[:12]}",
            lambda t=task, s=seeds: _plain(lesion_losses(t, rules, theta, LESIONS, s)),
        )
        files.append(context.folder / f"{task_name}.png")
        draw_decisions(files[-1], record(task, rules, theta, seeds), f"{name} on {task_name}")
    context.progress(Progress("portrait", len(recipe.tasks), len(recipe.tasks)))
    return JobResult({"checkpoint": name, "tasks": found}, (lesion_table(found),), files=files)


def _plain(losses: Mapping[str, Mapping[str, float | None]]) -> JsonValue:
    return {name: dict(values) for name, values in losses.items()}


def lesion_table(found: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> Table:
    """Return the lesions as a table: a column for each task."""
    rows = [(name, *(_shown(found[task][name]) for task in found)) for name in (NOMINAL, *LESIONS, HELD)]
    return Table(
        "What the learned parts are worth",
        ("without", *(task.replace("-", "\n", 1) for task in found)),
        tuple(rows),
        (
            "change of the final validation loss in nats: mean ± standard error of paired differences;",
            "above 0: the part helps. Nothing was trained again after a part was cut off.",
            f"without {HELD}: fresh ones in every step.",
        ),
    )


def _shown(value: Mapping[str, float | None]) -> str:
    if value["mean"] is None:
        return "diverged"
    error = "" if value["error"] is None else f" ± {value['error']:.3f}"
    return f"{value['mean']:+.3f}{error}"


def draw_decisions(path: Path, decisions: Decisions, title: str) -> None:
    """Draw step sizes, momentum and weight decay of every matrix, and steps of the rest, against progress.

    Args:
        path: the PNG.
        decisions: from `nfopt.meta.portrait.record`.
        title: above the picture.
    """
    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    (steps, others), (momentum, decay) = figure.subplots(2, 2)
    chosen = [i for i, name in enumerate(decisions.names) if name in decisions.matrices]
    rest = [i for i in range(len(decisions.names)) if i not in chosen]
    _lines(steps, decisions, decisions.step_factor, chosen, "step of matrices (x nominal)")
    _lines(others, decisions, decisions.step_factor, rest, "step of vectors (x nominal)")
    _lines(momentum, decisions, decisions.fast_share, chosen, "share of the fast momentum")
    _lines(decay, decisions, decisions.decay_factor, chosen, "weight decay (x nominal)")
    progress = decisions.progress
    nominal = built_in_schedule(progress, torch.arange(1, len(progress) + 1))
    for axes in (steps, others):
        axes.plot(
            progress.tolist(), nominal.tolist(), color="grey", linewidth=1, linestyle="--", label="nominal"
        )
    momentum.axhline(0.5, color="grey", linewidth=1, linestyle="--")
    decay.axhline(1.0, color="grey", linewidth=1, linestyle="--")
    steps.legend(frameon=False, fontsize=7)
    others.legend(frameon=False, fontsize=7)
    figure.suptitle(title)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150, format="png")


def _lines(axes: Axes, decisions: Decisions, values: Tensor, chosen: list[int], label: str) -> None:
    """Draw one line a tensor, from dark at the input to bright at the output."""
    colours = torch.linspace(0.05, 0.85, max(len(chosen), 2)).tolist()
    for colour, i in zip(colours, chosen, strict=False):
        shade = colormaps["viridis"](colour)
        axes.plot(decisions.progress.tolist(), values[:, i].tolist(), color=shade, label=decisions.names[i])
    axes.set(xlabel="progress", ylabel=label)
    axes.grid(visible=True, alpha=0.3)
