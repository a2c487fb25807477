"""Job `experiment`: many readers of weights on one question about a zoo, each tuned and trained alike."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator

from nfopt.experiments import READERS, Fit, FitConfig, fit
from nfopt.experiments.bench import Bench
from nfopt.experiments.exhibits import exhibit
from nfopt.experiments.readers import parameter_count
from nfopt.progress import Progress
from nfopt.recipe.experiment.plots import draw
from nfopt.recipe.experiment.report import Cell, Report, table
from nfopt.recipe.experiment.tasks import TaskOptions
from nfopt.recipe.experiment.zoo import ZooSource
from nfopt.recipe.inputs import DeviceName, device_of
from nfopt.recipe.job import JobResult, Recipe, RunContext, job
from nfopt.recipe.prune.options import digest
from nfopt.recipe.strict import Count, NonNegative, Positive, Seeds, Strict, all_known
from nfopt.zoo import Zoo


class FitOptions(Strict):
    """The settings of `nfopt.experiments.FitConfig` that all methods share."""

    total_steps: Count
    batch_size: Count = 64
    schedule: Literal["one_cycle", "constant"] = "one_cycle"
    weight_decay: NonNegative = 5e-4
    clip: NonNegative = 1.0
    evaluations: Count = 10

    def config(self, lr: float, seed: int) -> FitConfig:
        """Return the configuration of one fit."""
        return FitConfig(lr=lr, seed=seed, **dict(self))


class ExperimentRecipe(Recipe):
    """The keys of `kind: experiment`.

    Attributes:
        zoo: where the nets come from.
        task: what is asked of them.
        readers: names in `nfopt.experiments.READERS`, in the order of the table.
        reference: the reader that the others' paired differences are to.
        parameters: every reader gets the width whose number of parameters comes nearest.
        fit: how every reader is trained.
        lrs: learning rates; each reader's is the best on the validation side with the first seed.
        seeds: of initial weights, batches and augmentation; the zoo and its sides stay.
        train_nets: numbers of training nets, for a score against their number; null alone takes all.
        device: "auto", "cpu", "cuda" or "cuda:0".
    """

    zoo: ZooSource
    task: TaskOptions
    readers: Annotated[tuple[str, ...], Field(min_length=1), all_known("reader", READERS)]
    reference: str | None = None
    parameters: Count = 50_000
    fit: FitOptions
    lrs: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1e-3, 3e-3, 1e-2)
    seeds: Seeds = (0, 1, 2)
    train_nets: tuple[Count, ...] | None = None
    device: DeviceName = "auto"

    @field_validator("readers")
    @classmethod
    def _readers_are_distinct(cls, readers: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(readers)) < len(readers):
            raise ValueError("must be distinct.")
        return readers

    @field_validator("lrs", "train_nets")
    @classmethod
    def _are_distinct(cls, values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if values is not None and (not values or len(set(values)) < len(values)):
            raise ValueError("must be distinct, and at least one.")
        return values

    @field_validator("reference")
    @classmethod
    def _takes_part(cls, reference: str | None, info: Any) -> str | None:
        if reference is not None and reference not in info.data.get("readers", (reference,)):
            raise ValueError(f"{reference!r} is not among the readers.")
        return reference

    @property
    def sizes(self) -> tuple[int | None, ...]:
        """The numbers of training nets; None for all."""
        return self.train_nets or (None,)

    @property
    def compared_to(self) -> str:
        """The reader that the others are compared to."""
        return self.reference or ("role_tied" if "role_tied" in self.readers else self.readers[-1])


@dataclass(frozen=True)
class Part:
    """One fit."""

    reader: str
    nets: int | None
    lr: float
    seed: int

    @property
    def task(self) -> str:
        """What progress calls it."""
        nets = "" if self.nets is None else f", {self.nets} nets"
        return f"{self.reader}{nets}, lr {self.lr:g}, seed {self.seed}"


def plan_experiment(recipe: ExperimentRecipe) -> list[str]:
    """Return what a run would do."""
    each = len(recipe.lrs) + len(recipe.seeds) - 1
    count = each * len(recipe.readers) * len(recipe.sizes)
    nets = "" if recipe.train_nets is None else f" with {', '.join(map(str, recipe.train_nets))} nets"
    return [
        *recipe.zoo.plan(),
        f"{recipe.task.name}{nets}, by readers of about {recipe.parameters:,} parameters:",
        *(f"  {READERS[name].label}" for name in recipe.readers),
        f"{count} fits of {recipe.fit.total_steps} steps: {len(recipe.lrs)} learning rates with the first "
        f"seed, the chosen one with {len(recipe.seeds) - 1} more",
    ]


@job("experiment", ExperimentRecipe, plan=plan_experiment)
def run_experiment(recipe: ExperimentRecipe, context: RunContext) -> JobResult:
    """Compare networks that read the weights of nets on one question about a zoo."""
    zoo = recipe.zoo.open(context, recipe.device)
    context.note_data("zoo", zoo.digest)
    run = _Run(recipe, zoo, context)
    cells = [cell for nets in recipe.sizes for cell in run.cells(nets)]
    report = Report(
        metric=run.bench.task.metric,
        higher_is_better=run.bench.task.higher_is_better,
        reference=recipe.compared_to,
        title=f"{recipe.task.title} on {recipe.zoo.name}",
        cells=tuple(cells),
        exhibits=run.exhibits,
    )
    results: dict[str, JsonValue] = {
        "metric": report.metric,
        "zoo": {"digest": zoo.digest, "nets": len(zoo), "card": dict(zoo.card)},
        "cells": [asdict(cell) for cell in cells],
    }
    what, floor = run.bench.task.floor(zoo, run.bench.task.targets(zoo), "test")
    results["floor"] = {"what": what, "score": floor}
    notes = (
        f"Without reading any net ({what}): {report.shown(floor)}.",
        f"{recipe.fit.total_steps} steps of {recipe.fit.batch_size} nets for every method; learning rate, of "
        f"{', '.join(f'{lr:g}' for lr in recipe.lrs)}, and point of the training chosen on the validation "
        f"side ({int((zoo.side == 1).sum())} nets); scores on the test side ({int((zoo.side == 2).sum())} "
        f"nets), mean and standard error over seeds {', '.join(map(str, recipe.seeds))} of the readers.",
    )
    return JobResult(
        results=results,
        tables=(table(report, notes),),
        timing={f"{c.reader} {c.nets}": c.seconds for c in cells},
        files=tuple(draw(report, context.folder)),
    )


class _Run:
    """A running experiment: fits as pieces, the chosen learning rate of each reader."""

    def __init__(self, recipe: ExperimentRecipe, zoo: Zoo, context: RunContext) -> None:
        self.recipe, self.context = recipe, context
        device = device_of(recipe.device)
        task = recipe.task.build(zoo)
        self.bench = Bench(zoo.to(device), task, progress=context.progress)
        self.bench.check(recipe.readers)
        self.exhibits: dict[str, Any] = {}
        self.widths: dict[str, int] = {}
        self.counts: dict[str, int] = {}
        for name in recipe.readers:
            self.widths[name] = READERS[name].width_near(self.bench.question, recipe.parameters)
            made = READERS[name].make(self.bench.question, self.widths[name])
            self.counts[name] = parameter_count(made)
        self.total = (len(recipe.lrs) + len(recipe.seeds) - 1) * len(recipe.readers) * len(recipe.sizes)
        self.done = 0
        shared = recipe.model_dump(mode="json", include={"task", "fit", "parameters"})
        self.digest = digest(shared, zoo.digest)

    def cells(self, nets: int | None) -> Iterator[Cell]:
        """Yield the cell of each reader, trained on so many nets."""
        for name in self.recipe.readers:
            yield self._cell(name, nets)

    def _cell(self, name: str, nets: int | None) -> Cell:
        recipe, metric = self.recipe, self.bench.task.metric
        first = recipe.seeds[0]
        tried = {lr: self._fit(Part(name, nets, lr, first)) for lr in recipe.lrs}
        sign = 1 if self.bench.task.higher_is_better else -1
        values = {lr: each[0].score("val", metric) for lr, each in tried.items()}
        known = {lr: sign * value for lr, value in values.items() if value is not None}
        lr = max(known, key=lambda each: known[each]) if known else recipe.lrs[0]
        chosen = [tried[lr], *(self._fit(Part(name, nets, lr, seed)) for seed in recipe.seeds[1:])]
        if nets is None or nets == max(recipe.train_nets or (nets,)):
            self.exhibits[name] = chosen[0][1]
        return Cell(
            reader=name,
            label=READERS[name].label,
            parameters=self.counts[name],
            width=self.widths[name],
            nets=nets,
            lr=lr,
            at_edge=len(recipe.lrs) > 2 and lr in (min(recipe.lrs), max(recipe.lrs)),
            scores=tuple(each[0].score("test", metric) for each in chosen),
            validation=tuple(each[0].score("val", metric) for each in chosen),
            fits=tuple(asdict(each[0]) for each in chosen),
            seconds=sum(each[0].seconds for each in chosen) / len(chosen),
        )

    def _fit(self, part: Part) -> tuple[Fit, dict[str, Any]]:
        key = f"{part.reader}-{part.nets or 'all'}-{part.lr:g}-seed{part.seed}-{self.digest}"
        kept = self.context.piece(key, lambda: self._compute(part, key))
        self.done += 1
        self.context.progress(Progress("all fits", self.done, self.total))
        return Fit(**kept["fit"]), kept["exhibit"]

    def _compute(self, part: Part, key: str) -> JsonValue:
        bench, recipe = self.bench, self.recipe
        entry = READERS[part.reader]
        zoo, targets = bench.prepared(entry.prepare, part.nets)
        network = entry.make(bench.question, self.widths[part.reader], part.seed).to(zoo.side.device)
        found = fit(
            network,
            bench.task,
            zoo,
            targets,
            recipe.fit.config(part.lr, part.seed),
            augment=bench.augment(entry),
            state_file=self.context.state_file(f"{key}.safetensors"),
            progress=self.context.progress,
            name=part.task,
        )
        shown: dict[str, Any] = {}
        if part.seed == recipe.seeds[0] and found.best_step is not None:
            shown = exhibit(network.eval(), bench.task, zoo, targets)
        return {"fit": asdict(found), "exhibit": shown}
