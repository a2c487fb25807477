"""Job `evaluate_rule`: a rule on held-out tasks, beside its nominal point, tuned AdamW and tuned Muon."""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from nfopt.meta.baselines import LAYOUT, AdamWRule, MuonRule, settings
from nfopt.meta.evaluate import Comparison, Method, compare
from nfopt.meta.nets import Architecture
from nfopt.meta.rules import LearnedRules
from nfopt.meta.sources import load_source
from nfopt.meta.task import TaskConfig
from nfopt.meta.unroll import Vmapped
from nfopt.optim import RuleConfig
from nfopt.optim.rule_checkpoint import read_rule
from nfopt.progress import Progress
from nfopt.recipe.job import JobResult, Recipe, RunContext, Table, job
from nfopt.recipe.records import record
from nfopt.recipe.strict import Count, Fraction, Index, NonNegative, Positive, Strict

DIGITS_MLP = TaskConfig(
    Architecture("mlp", (128, 128), 10, (1, 8, 8)), batch_images=128, train_images=1000, horizon=500
)
METHOD_NAMES = {"adamw": "AdamW, tuned", "muon": "Muon, tuned", "nominal": "nominal", "learned": "learned"}


class Grid(Strict):
    """Settings that a baseline is tuned over: every combination is tried."""

    learning_rates: tuple[Positive, ...] = Field(min_length=1)
    weight_decays: tuple[NonNegative, ...] = Field(min_length=1)
    momenta: tuple[Fraction, ...] = Field(min_length=1)
    cosine: tuple[bool, ...] = Field(default=(False, True), min_length=1)

    def candidates(self) -> list[dict[str, float]]:
        """Return every combination."""
        schedules = tuple("cosine" if cosine else "linear" for cosine in self.cosine)
        return settings(self.learning_rates, self.weight_decays, self.momenta, schedules)


ADAMW = Grid(
    learning_rates=(0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032),
    weight_decays=(0.0, 0.05, 0.1),
    momenta=(0.9,),
)
MUON = Grid(
    learning_rates=(0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064),
    weight_decays=(0.0, 0.1),
    momenta=(0.8, 0.9, 0.95),
    cosine=(False,),
)


class EvaluationOptions(Strict):
    """Held-out tasks by name, seeds, and the grids of the baselines, which must be equally large."""

    tasks: dict[str, Annotated[TaskConfig, record(TaskConfig)]] = Field(
        default={"digits-mlp": DIGITS_MLP}, min_length=1
    )
    seed: Index = 0
    seeds: Count = 5
    tuning_seeds: Count = 1
    every: Count = 10
    copies: Count = 14
    adamw: Grid = ADAMW
    muon: Grid = MUON

    @model_validator(mode="after")
    def _equal_budgets(self) -> "EvaluationOptions":
        counts = len(self.adamw.candidates()), len(self.muon.candidates())
        if counts[0] != counts[1]:
            raise ValueError(
                f"the grids of adamw and muon must be equally large, not {counts[0]} and {counts[1]}."
            )
        return self


class EvaluateRuleRecipe(Recipe):
    """The keys of `kind: evaluate_rule`."""

    checkpoint: str = "default"
    evaluation: EvaluationOptions = Field(default_factory=EvaluationOptions)


def plan_evaluation(options: EvaluationOptions) -> list[str]:
    """Return what an evaluation would do."""
    count = len(options.adamw.candidates())
    return [
        f"{name}: tune AdamW and Muon over {count} settings each, then train them, the nominal and the "
        f"learned rule {options.seeds} times for {task.horizon} steps on {task.source}"
        for name, task in options.tasks.items()
    ]


def plan_evaluate_rule(recipe: EvaluateRuleRecipe) -> list[str]:
    """Return what a run would do."""
    return plan_evaluation(recipe.evaluation)


def methods(config: RuleConfig, theta: Mapping[str, Tensor], options: EvaluationOptions) -> list[Method]:
    """Return the methods of the comparison; without theta the learned rule is left out."""
    rules = LearnedRules(config)
    nominal, layout = rules.init_theta(0)
    grids = (("adamw", AdamWRule(), options.adamw), ("muon", MuonRule(), options.muon))
    listed = []
    for name, rule, grid in grids:
        candidates = grid.candidates()
        rows = torch.tensor([list(candidate.values()) for candidate in candidates])
        listed.append(Method(name, lambda task, r=rule: Vmapped(r), LAYOUT, rows, tuple(candidates)))
    listed.append(Method("nominal", rules, layout, nominal[None], ({},)))
    if theta:
        listed.append(Method("learned", rules, layout, layout.flatten(theta)[None], ({},)))
    return listed


def evaluate(
    config: RuleConfig, theta: Mapping[str, Tensor], options: EvaluationOptions, context: RunContext
) -> dict[str, Any]:
    """Compare the rule on every task, keeping each finished part; return JSON values by task."""
    comparison = Comparison(
        tuning_seeds=options.tuning_seeds,
        seeds=options.seeds,
        every=options.every,
        copies=options.copies,
        seed=options.seed,
    )
    found = {}
    listed = methods(config, theta, options)
    for index, (name, task) in enumerate(options.tasks.items()):
        side = task.architecture.image[1]
        context.note_data(f"{task.source}-{side}", load_source(task.source, side).content_hash)
        context.progress(Progress("evaluate", index, len(options.tasks), name))
        found[name] = compare(name, task, listed, comparison, context.piece)
    context.progress(Progress("evaluate", len(options.tasks), len(options.tasks)))
    return found


def evaluation_table(found: Mapping[str, Any]) -> Table:
    """Return the comparison as a table: a row for each task and method."""
    rows = []
    for task, compared in found.items():
        for name, entry in compared["methods"].items():
            rows.append(
                (
                    f"{task}: {METHOD_NAMES[name]}",
                    _shown(entry["train"]),
                    _shown(entry["validation"]),
                    _shown(entry["test"]),
                    _shown(entry["accuracy"], 100, 1),
                    _shown(entry["steps_to_target"], 1, 0, spread=False),
                    _shown(entry["validation_minus_nominal"]),
                )
            )
    heads = (
        "",
        "train\nloss",
        "val.\nloss",
        "test\nloss",
        "test\nacc. %",
        "steps to\nAdamW's",
        "val. loss -\nnominal",
    )
    return Table(
        "Held-out tasks",
        heads,
        tuple(rows),
        (
            "mean and standard error over seeds; AdamW and Muon tuned on validation loss with equal budgets.",
            "steps to tuned AdamW's final validation loss; '-': not reached by every seed.",
        ),
    )


def _shown(value: Mapping[str, Any], scale: float = 1, digits: int = 3, *, spread: bool = True) -> str:
    if value["mean"] is None:
        return "-"
    mean = f"{scale * value['mean']:.{digits}f}"
    return mean if value["error"] is None or not spread else f"{mean} ± {scale * value['error']:.{digits}f}"


def card_scores(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the means and errors alone, for a checkpoint's card."""
    return {
        task: {
            name: {
                key: {"mean": part["mean"], "error": part["error"]}
                if isinstance(part, dict) and "mean" in part
                else part
                for key, part in entry.items()
            }
            for name, entry in compared["methods"].items()
        }
        for task, compared in found.items()
    }


@job("evaluate_rule", EvaluateRuleRecipe, plan=plan_evaluate_rule)
def run_evaluate_rule(recipe: EvaluateRuleRecipe, context: RunContext) -> JobResult:
    """Compare a learned rule with tuned AdamW and Muon and its nominal point on held-out tasks."""
    config, theta, name = read_rule(recipe.checkpoint)
    found = evaluate(config, theta, recipe.evaluation, context)
    return JobResult({"checkpoint": name, "tasks": found}, (evaluation_table(found),))
