"""Job `meta_train`: learn the update rule's weights and write them as a checkpoint."""

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from accelerate import Accelerator
from pydantic import Field, JsonValue
from safetensors.torch import load_file
from torch import Tensor

from nfopt.checkpoints import digest_of, save_checkpoint
from nfopt.errors import RecipeError
from nfopt.meta.backprop import TruncatedBackprop
from nfopt.meta.estimator import ES, PES, GradientEstimator
from nfopt.meta.family import TaskFamily
from nfopt.meta.lesions import LESIONS, left_by, reading
from nfopt.meta.local_workers import local_workers
from nfopt.meta.objective import Objective
from nfopt.meta.outer import OuterConfig
from nfopt.meta.rules import LearnedRules
from nfopt.meta.selection import Selection, longer_tasks
from nfopt.meta.slot import SlotSettings
from nfopt.meta.store import save_theta
from nfopt.meta.trainer import MetaTrainer, TrainerConfig
from nfopt.meta.workers import AccelerateWorkers, Workers
from nfopt.optim import RuleConfig
from nfopt.optim.observations import TENSOR_FEATURES
from nfopt.optim.rule_checkpoint import read_rule, rule_checkpoint
from nfopt.progress import ProgressCallback, silent
from nfopt.recipe.job import JobResult, RunContext, Table, job
from nfopt.recipe.meta.heldout import (
    EvaluationOptions,
    card_scores,
    evaluate,
    evaluation_table,
    plan_evaluation,
)
from nfopt.recipe.meta.task_families import FamilyRecipe
from nfopt.recipe.processes import from_first, is_first, process_count
from nfopt.recipe.records import record
from nfopt.recipe.strict import Count, Fraction, Index, Positive, Strict, all_known


class EstimatorOptions(Strict):
    """The meta-gradient's estimator: `truncation` null is the whole training.

    `sigma` is ES's and PES's; `max_norm`, the largest gradient of one instance, `fade`, which makes longer
    ones count for less, and `segment`, the inner steps whose graph is in memory at a time, are
    backpropagation's.
    """

    kind: Literal["es", "pes", "backprop"] = "backprop"
    truncation: Count | None = 50
    sigma: Positive = 0.01
    max_norm: Positive = 10.0
    segment: Count | None = 25
    fade: bool = False

    def build(self) -> GradientEstimator:
        """Return the estimator."""
        if self.kind == "es":
            return ES(self.sigma, self.truncation)
        if self.kind == "pes":
            return PES(self.sigma, self.truncation or 50)
        return TruncatedBackprop(self.truncation, self.max_norm, self.segment, self.fade)


class SelectionOptions(Strict):
    """The trainings by which the Polyak average is chosen: longer ones, of `family` or the training's own.

    `shrink` lists what its output layers are multiplied by in turn, see `TrainerConfig`.
    """

    tasks: Count = 6
    instances: Count = 2
    horizon_factor: Count = 5
    every: Count = 50
    family: Annotated[TaskFamily, record(TaskFamily)] | None = None
    shrink: tuple[Fraction, ...] = (1.0,)


class MetaTrainRecipe(FamilyRecipe):
    """The keys of `kind: meta_train`; see the dataclasses of nfopt.meta for what the nested ones mean.

    The work is shared by `processes` of `threads` threads each, all on this machine; the numbers do not
    depend on how many processes there are. torchrun or accelerate launch may start them instead. With
    `device: cuda` the processes take the GPUs in turn. `without` names parts of the rule that are not
    learned, keys of `nfopt.meta.lesions.LESIONS`: their weights are held at zero, an ablation. With
    `only_reading` the weights that read these tensor features are learned alone; the others stay as they
    start.
    """

    many_processes: ClassVar[bool] = True

    seed: Index = 0
    processes: Count = 1
    threads: Count = 1
    device: Literal["cpu", "cuda"] = "cpu"
    rule: Annotated[RuleConfig, record(RuleConfig)] = Field(default_factory=RuleConfig)
    without: Annotated[tuple[str, ...], all_known("lesion", LESIONS)] = ()
    only_reading: Annotated[tuple[str, ...], all_known("tensor feature", TENSOR_FEATURES)] = ()
    start: str | None = None
    objective: Annotated[Objective, record(Objective)] = Field(default_factory=Objective)
    estimator: EstimatorOptions = Field(default_factory=EstimatorOptions)
    slots: Count = 6
    instances: Count = 8
    reference_share: Fraction = 0.25
    outer: Annotated[OuterConfig, record(OuterConfig)] = Field(default_factory=OuterConfig)
    checkpoint_every: Count = 10
    selection: SelectionOptions = Field(default_factory=SelectionOptions)
    evaluation: EvaluationOptions | None = None


def plan_meta_train(recipe: MetaTrainRecipe) -> list[str]:
    """Return what a run would do."""
    low, high = recipe.family.horizon
    return [
        f"meta-train {recipe.outer.outer_steps} outer steps of {recipe.slots} tasks x {recipe.instances} "
        f"antithetic pairs ({recipe.estimator.kind}), each {low} to {high} inner steps, on "
        f"{', '.join(recipe.family.sources)}",
        *(
            f"{variant.share:.0%} of the tasks as {name}: {variant.family.train_images[0]} to "
            f"{variant.family.train_images[1]} images of {', '.join(variant.family.sources)}, "
            f"{variant.family.horizon[0]} to {variant.family.horizon[1]} inner steps"
            for name, variant in recipe.variants.items()
        ),
        *((f"without learning a part: {', '.join(recipe.without)}",) if recipe.without else ()),
        *((f"learning what reads {', '.join(recipe.only_reading)}",) if recipe.only_reading else ()),
        f"every {recipe.selection.every} outer steps, try the average on {recipe.selection.tasks} trainings "
        f"{recipe.selection.horizon_factor} times as long",
        f"in {recipe.processes} process{'es' if recipe.processes > 1 else ''} of {recipe.threads} "
        f"thread{'s' if recipe.threads > 1 else ''}",
        "write checkpoint.safetensors with the best average, or the nominal point if none was better",
        *(plan_evaluation(recipe.evaluation) if recipe.evaluation else ()),
    ]


def build_trainer(
    recipe: MetaTrainRecipe,
    folder: Path,
    state: Path,
    *,
    workers: Workers | None = None,
    progress: ProgressCallback = silent,
) -> MetaTrainer:
    """Return the trainer that a recipe describes.

    Args:
        recipe: the recipe.
        folder: where the log and the best theta so far go.
        state: where the checkpoints go.
        workers: the processes that share the work; each builds a trainer of its own.
        progress: told after every outer step.

    Raises:
        RecipeError: `start` is a checkpoint of another rule configuration, or there is no such device.
    """
    rules = LearnedRules(recipe.rule)
    nominal, layout = rules.init_theta(recipe.seed)
    estimator = recipe.estimator.build()
    device = _device(recipe.device, 0 if workers is None else workers.rank)
    settings = SlotSettings(
        family=recipe.tasks(),
        rules=rules,
        layout=layout,
        estimator=estimator,
        objective=recipe.objective,
        nominal=nominal,
        instances=recipe.instances,
        reference_share=recipe.reference_share,
        seed=recipe.seed,
        device=device,
    )
    start = nominal if recipe.start is None else layout.flatten(_start(recipe))
    left = left_by(recipe.without, layout)
    chosen = recipe.selection
    tasks = longer_tasks(chosen.family or recipe.tasks(), chosen.tasks, recipe.seed, chosen.horizon_factor)
    return MetaTrainer(
        settings,
        TrainerConfig(recipe.outer, recipe.slots, recipe.checkpoint_every, chosen.every, chosen.shrink),
        folder,
        state=state,
        selection=Selection(tasks, rules, layout, recipe.objective, chosen.instances, recipe.seed, device),
        start=torch.where(left, start, torch.zeros_like(start)),
        learned=left & reading(recipe.only_reading, layout) if recipe.only_reading else left,
        workers=workers,
        progress=progress,
    )


def _device(kind: str, rank: int) -> str:
    if kind == "cpu":
        return kind
    count = torch.cuda.device_count()
    if not count:
        raise RecipeError("device: cuda needs an NVIDIA GPU that torch can use; this machine has none.")
    return f"cuda:{rank % count}"


def _start(recipe: MetaTrainRecipe) -> dict[str, Tensor]:
    assert recipe.start is not None
    config, theta, name = read_rule(recipe.start)
    if config != recipe.rule or not theta:
        raise RecipeError(
            f"start: {name} holds {'another rule configuration' if theta else 'no weights'}; "
            "give a checkpoint that was trained with the recipe's `rule`, or leave `start` out."
        )
    return theta


@job("meta_train", MetaTrainRecipe, plan=plan_meta_train)
def run_meta_train(recipe: MetaTrainRecipe, context: RunContext) -> JobResult:
    """Meta-train the update rule on many small trainings and write its checkpoint."""
    if process_count() > 1 and recipe.processes > 1:
        raise RecipeError(
            f"{process_count()} processes were started for a recipe that starts {recipe.processes} itself. "
            "Set processes=1, or run it without torchrun or accelerate launch."
        )
    if from_first(lambda: context.kept("meta-training") is None) and not is_first():
        _train(recipe, context)
    if not is_first():
        return JobResult({})
    recipe.note_sources(context)
    summary = context.piece("meta-training", lambda: _train(recipe, context))
    theta = load_file(context.folder / "best.safetensors")
    results: dict[str, JsonValue] = {"summary": summary, "digest": digest_of(theta)}
    tables = [_table(summary)]
    card: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json", exclude={"output", "provenance"}),
        "summary": summary,
        "torch": str(torch.__version__),
    }
    if recipe.evaluation is not None:
        found = evaluate(recipe.rule, theta, recipe.evaluation, context)
        results["tasks"] = found
        card["heldout"] = card_scores(found)
        tables.append(evaluation_table(found))
    place = context.folder / "checkpoint.safetensors"
    save_checkpoint(place, rule_checkpoint(theta, recipe.rule, card), overwrite=True)
    return JobResult(results, tables, files=(place,))


def _train(recipe: MetaTrainRecipe, context: RunContext) -> JsonValue:
    state = context.state_file("meta-training")
    shared = (recipe.model_dump_json(), str(context.folder), str(state))
    with local_workers(recipe.processes, _follow, shared, recipe.threads) as workers:
        if process_count() > 1:
            workers = AccelerateWorkers(Accelerator(cpu=recipe.device == "cpu"))
        progress = context.progress
        trained = build_trainer(recipe, context.folder, state, workers=workers, progress=progress).run()
    summary = {name: value for name, value in vars(trained).items() if name != "theta"}
    if is_first():
        save_theta(context.folder, trained.theta, summary)
    return summary


def _follow(workers: Workers, recipe: str, folder: str, state: str) -> None:
    """Do the share of another process than the one that runs the recipe."""
    read = MetaTrainRecipe.model_validate(json.loads(recipe))
    build_trainer(read, Path(folder), Path(state), workers=workers).run()


def _table(summary: dict[str, Any]) -> Table:
    chosen = f"outer step {summary['outer_step']}" if summary["outer_step"] else "the nominal point"
    return Table(
        "Meta-training",
        ("chosen", "log loss against\nnominal, selection", "inner steps", "failed copies"),
        ((chosen, f"{summary['gain']:+.4f}", f"{summary['inner_steps']:,}", str(summary["failures"])),),
        ("below 0: the learned rule reaches a lower validation loss than the nominal one.",),
    )
