"""Job `constant_mixture`: the best constant decisions by random search, which a learned rule has to beat."""

from collections.abc import Mapping
from math import atanh
from typing import Annotated, Any

import torch
from pydantic import Field, JsonValue
from torch import Tensor

from nfopt.checkpoints import digest_of, save_checkpoint
from nfopt.meta.objective import Objective
from nfopt.meta.rules import LearnedRules
from nfopt.meta.selection import Selection, longer_tasks
from nfopt.meta.theta import ThetaLayout
from nfopt.optim import RuleConfig
from nfopt.optim.controls import CONTROL_NAMES, REACH
from nfopt.optim.observations import TENSOR_FEATURES
from nfopt.optim.rule_checkpoint import rule_checkpoint
from nfopt.progress import Progress
from nfopt.recipe.job import JobResult, RunContext, Table, job
from nfopt.recipe.meta.task_families import FamilyRecipe
from nfopt.recipe.records import record
from nfopt.recipe.strict import Count, Index
from nfopt.seeds import derive_seed, generator

# What is drawn: a control, the feature of the tensors that it is for, and the largest size of its value.
CONSTANTS = {
    "log_step": ("log_step", "one", 1.2),
    "log_step_of_matrices": ("log_step", "matrix", 0.8),
    "log_step_of_kernels": ("log_step", "kernel", 0.8),
    "fast_share": ("fast_share", "one", 0.7),
    "log_decay": ("log_decay", "one", 1.8),
}


class ConstantMixtureRecipe(FamilyRecipe):
    """The keys of `kind: constant_mixture`.

    In every round the candidates train more tasks and only the best quarter goes on; the nominal point takes
    part in all rounds.

    Attributes:
        rule: constants of the nominal optimizer.
        objective: the meta-loss.
        seed: root of all draws.
        candidates: constants drawn at random.
        rounds: number of rounds.
        first_tasks: tasks of the first round, which double from round to round.
        instances: instances of each task.
    """

    rule: Annotated[RuleConfig, record(RuleConfig)] = Field(default_factory=RuleConfig)
    objective: Annotated[Objective, record(Objective)] = Field(default_factory=Objective)
    seed: Index = 0
    candidates: Count = 64
    rounds: Count = 3
    first_tasks: Count = 6
    instances: Count = 1


def plan_constant_mixture(recipe: ConstantMixtureRecipe) -> list[str]:
    """Return what a run would do."""
    lines = []
    left = recipe.candidates
    for index in range(recipe.rounds):
        lines.append(f"round {index + 1}: {left} candidates on {recipe.first_tasks * 2**index} new tasks")
        left = max(1, left // 4)
    return [*lines, "write checkpoint.safetensors with the best candidate"]


def draw_constants(seed: int, index: int) -> dict[str, float]:
    """Draw the constants of one candidate, by their names in CONSTANTS."""
    draws = 2 * torch.rand(len(CONSTANTS), generator=generator(seed, "constants", index)) - 1
    return {name: float(u) * size for u, (name, (_, _, size)) in zip(draws, CONSTANTS.items(), strict=True)}


def theta_of(constants: Mapping[str, float], nominal: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the rule's weights with which it decides the same in every step.

    Args:
        constants: what is added to the controls' nominal values, by the names in CONSTANTS.
        nominal: weights whose output layers are zero.
    """
    theta = {name: value.clone() for name, value in nominal.items()}
    hidden = theta["token"].shape[-1]
    for name, value in constants.items():
        control, feature, _ = CONSTANTS[name]
        row = CONTROL_NAMES.index(control)
        column = hidden + TENSOR_FEATURES.index(feature)
        theta["tensor_output"][row, column] = atanh(value / REACH[row])
    return theta


@job("constant_mixture", ConstantMixtureRecipe, plan=plan_constant_mixture)
def run_constant_mixture(recipe: ConstantMixtureRecipe, context: RunContext) -> JobResult:
    """Search the best constant decisions at random: what a learned rule has to beat."""
    recipe.note_sources(context)
    rules = LearnedRules(recipe.rule)
    vector, layout = rules.init_theta(recipe.seed)
    nominal = layout.unflatten(vector)
    constants = [draw_constants(recipe.seed, i) for i in range(recipe.candidates)]
    alive, losses = list(range(recipe.candidates)), torch.zeros(recipe.candidates + 1, 0)
    inner_steps = 0
    for number in range(recipe.rounds):
        rows = [theta_of(constants[i], nominal) for i in alive]
        thetas = [layout.flatten(row) for row in (*rows, nominal)]
        found, steps = _round(recipe, context, number, thetas, layout, rules)
        inner_steps += steps
        full = torch.full((recipe.candidates + 1, found.shape[1]), torch.nan)
        full[[*alive, recipe.candidates]] = found
        losses = torch.cat([losses, full], 1)
        ranked = sorted(alive, key=lambda i: float(losses[i].mean()))
        alive = ranked[: max(1, len(ranked) // 4)] if number + 1 < recipe.rounds else ranked
    best = alive[0]
    gaps = losses[best] - losses[-1]
    summary: dict[str, JsonValue] = {
        "constants": dict(constants[best]),
        "gain_over_nominal": float(gaps.mean()),
        "error": float(gaps.std() / len(gaps) ** 0.5) if len(gaps) > 1 else None,
        "tasks": len(gaps),
        "inner_steps": inner_steps,
    }
    place = context.folder / "checkpoint.safetensors"
    theta = theta_of(constants[best], nominal)
    card: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json", exclude={"output", "provenance"}),
        "summary": summary,
    }
    save_checkpoint(place, rule_checkpoint(theta, recipe.rule, card), overwrite=True)
    return JobResult({"summary": summary, "digest": digest_of(theta)}, (_table(summary),), files=(place,))


def _round(
    recipe: ConstantMixtureRecipe,
    context: RunContext,
    number: int,
    thetas: list[Tensor],
    layout: ThetaLayout,
    rules: LearnedRules,
) -> tuple[Tensor, int]:
    """Return the losses (candidates, tasks) of one round, and the inner steps that it took."""
    seed = derive_seed(recipe.seed, "round", number)
    tasks = longer_tasks(recipe.tasks(), recipe.first_tasks * 2**number, seed, 1)
    columns = []
    for index, task in enumerate(tasks):
        chosen = Selection((task,), rules, layout, recipe.objective, recipe.instances, seed + index)
        context.progress(Progress(f"round {number + 1} of {recipe.rounds}", index, len(tasks)))
        columns.append(
            context.piece(f"round-{number}-task-{index}", lambda c=chosen: c.losses(thetas)[:, 0].tolist())
        )
    context.progress(Progress(f"round {number + 1} of {recipe.rounds}", len(tasks), len(tasks)))
    steps = sum(task.horizon for task in tasks) * len(thetas) * recipe.instances
    return torch.tensor(columns).T, steps


def _table(summary: Mapping[str, Any]) -> Table:
    error = "" if summary["error"] is None else f" ± {summary['error']:.4f}"
    rows = [(name.replace("_", " "), f"{value:+.3f}") for name, value in summary["constants"].items()]
    rows.append(("log loss against nominal", f"{summary['gain_over_nominal']:+.4f}{error}"))
    rows.append(("inner steps", f"{summary['inner_steps']:,}"))
    return Table("The best constants", ("added to the nominal control", "value"), tuple(rows))
