"""Job `prune_race`: nets trained under the masks of many scores side by side, each with its controls."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, JsonValue, field_validator
from torch import Tensor, nn

from nfopt.checkpoints import load_checkpoint
from nfopt.data import ImageData
from nfopt.errors import NfoptError
from nfopt.progress import ProgressCallback
from nfopt.pruning import PruningMask, Score
from nfopt.pruning.copies import CopiesConfig, MaskedCopies, score_copies, train_copies
from nfopt.pruning.neural import neural_score, read_network
from nfopt.pruning.neural.mask_network import CHECKPOINT_KIND
from nfopt.recipe.inputs import DataOptions, DeviceName, ModelOptions, device_of
from nfopt.recipe.job import JobResult, Recipe, RunContext, job
from nfopt.recipe.prune.options import MaskOptions, build, data_key, digest, report_into
from nfopt.recipe.prune.race_report import RaceRows, pictures, tables, verdicts
from nfopt.recipe.strict import Count, Fraction, NonNegative, Positive, Seeds, Strict
from nfopt.recipe.trial import loaded

RESEED = 1_000_003
Control = Literal["none", "shuffled", "reinitialised"]
CONTROLS: tuple[Control, ...] = ("shuffled", "reinitialised")
DENSE = "dense"


class RaceMethod(MaskOptions):
    """One way to make a mask.

    Attributes:
        at_init: whether it counts among the methods that make their mask before any training; the best of
            these (but for `ours`) is what `ours` is compared with.
        controls: whether it is also run with its mask shuffled within layers, and with new initial weights.
        checkpoint: for the score "nf": a checkpoint's name or path; null for the one that comes with nfopt.
        head: for the score "nf": which of its two decisions counts; "both" mixes on convolutional nets.
        mixed: for the score "nf": false leaves convolutional nets to its flow alone too.
    """

    at_init: bool = True
    controls: bool = False
    checkpoint: str | None = None
    head: Literal["both", "ranking", "allocation", "none"] = "both"
    mixed: bool = True

    def resolved_score(self) -> str | Score:
        """Return what `nfopt.prune` is given as the score."""
        if self.score != "nf" or (self.checkpoint is None and self.head == "both" and self.mixed):
            return self.score
        return neural_score(
            read_network(self.checkpoint or "mask"),
            ranking=self.head in ("both", "ranking"),
            allocation=self.head in ("both", "allocation"),
            mixed=self.mixed and self.head == "both",
        )

    def digest(self) -> str | None:
        """Return the hash of the weights that the mask depends on; None without any."""
        if self.score != "nf":
            return None
        return load_checkpoint(self.checkpoint or "mask", kind=CHECKPOINT_KIND).digest


class Heat(Strict):
    """A net on a data set, and how all its masked copies are trained: AdamW, half a cosine down to zero.

    Attributes:
        data: the data set.
        model: the model; each seed gives all methods the same initial weights.
        total_steps: steps of every training; "imp" takes as many for each of its rounds besides.
        batch_size: images per step.
        lr: learning rate of the first step.
        weight_decay: AdamW's.
    """

    data: DataOptions
    model: ModelOptions
    total_steps: Count
    batch_size: Count = 64
    lr: Positive = 3e-3
    weight_decay: NonNegative = 0.0


class PruneRaceRecipe(Recipe):
    """The keys of `kind: prune_race`.

    Attributes:
        heats: nets and data, by name.
        methods: ways to make masks, by key, in the order of the tables.
        densities: kept fractions.
        seeds: one net each, the same for all methods: differences are paired.
        ours: the method that the verdict is about.
        reference: the method from which the gap to `goal` is counted.
        goal: the method that marks the other end of the gap.
        score_batches: batches that a score sees.
        score_batch_size: images in each.
        side_by_side: copies in one batched program; more need more memory.
        device: "auto", "cpu", "cuda" or "cuda:0".
    """

    heats: Annotated[dict[str, Heat], Field(min_length=1)]
    methods: Annotated[dict[str, RaceMethod], Field(min_length=1)]
    densities: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (0.1, 0.05, 0.02)
    seeds: Seeds = (0, 1, 2, 3, 4)
    ours: str = "nf"
    reference: str = "synflow"
    goal: str = "imp"
    score_batches: Count = 10
    score_batch_size: Count = 128
    side_by_side: Count = 32
    device: DeviceName = "auto"

    @field_validator("densities")
    @classmethod
    def _are_distinct(cls, densities: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(densities)) < len(densities):
            raise ValueError("must be distinct.")
        return densities

    @field_validator("methods")
    @classmethod
    def _are_possible(cls, methods: dict[str, RaceMethod]) -> dict[str, RaceMethod]:
        for key, method in methods.items():
            if key == DENSE:
                raise ValueError(f"a method cannot be called {DENSE!r}; that is the net without a mask.")
            own = method.checkpoint is not None or method.head != "both" or not method.mixed
            if method.score != "nf" and own:
                raise ValueError(f"{key}: checkpoint, head and mixed are settings of the score nf.")
            if method.fixed_density is not None:
                raise ValueError(f"{key}: the scope {method.scope} leaves no density to compare at.")
        return methods

    @field_validator("ours", "reference", "goal")
    @classmethod
    def _is_a_method(cls, key: str, info: Any) -> str:
        known = info.data.get("methods", {})
        if known and key not in known:
            raise ValueError(f"{key!r} is none of the methods {', '.join(known)}.")
        return key


def plan_prune_race(recipe: PruneRaceRecipe) -> list[str]:
    """Return what a run would do."""
    copies = sum(1 + len(CONTROLS) * m.controls for m in recipe.methods.values())
    lines = [
        f"{name}: train {heat.model.name} on {heat.data.name} for {heat.total_steps} steps"
        for name, heat in recipe.heats.items()
    ]
    kept = ", ".join(f"{100 * density:g} %" for density in recipe.densities)
    lines.append(f"each dense and under {copies} masks at {kept} kept, {len(recipe.seeds)} seeds")
    lines.append(f"masks by {', '.join(m.label or key for key, m in recipe.methods.items())}")
    return lines


@job("prune_race", PruneRaceRecipe, plan=plan_prune_race)
def run_prune_race(recipe: PruneRaceRecipe, context: RunContext) -> JobResult:
    """Train nets under the masks of many scores and compare what they come to, with controls and times."""
    hashes = {key: _digest(key, method) for key, method in recipe.methods.items()}
    for key, value in hashes.items():
        if value is not None:
            context.note_data(f"mask network of {key}", value)
    rows: list[Any] = []
    parts = [(h, s, d) for h in recipe.heats for s in recipe.seeds for d in (1.0, *recipe.densities)]
    sets: dict[str, ImageData] = {}
    for done, (name, seed, density) in enumerate(parts):
        report_into(context.progress, "all trainings", done, len(parts), "trainings")
        heat = recipe.heats[name]
        if name not in sets:
            sets = {name: loaded(heat.data)}
            context.note_data(name, sets[name].content_hash)
        compute = partial(_part, recipe, name, seed, density, sets[name], context)
        found = context.piece(_piece_name(recipe, name, seed, density, hashes), compute)
        rows += [{"heat": name, "seed": seed, "density": density, **row} for row in found]
    report_into(context.progress, "all trainings", len(parts), len(parts), "trainings")
    race = RaceRows(
        rows,
        tuple(recipe.heats),
        {key: method.label or key for key, method in recipe.methods.items()},
        recipe.densities,
        tuple(key for key, method in recipe.methods.items() if method.at_init and key != recipe.ours),
        recipe.ours,
        recipe.reference,
        recipe.goal,
    )
    return JobResult(
        results={
            "trainings": [{k: v for k, v in row.items() if k != "seconds"} for row in rows],
            "verdicts": verdicts(race),
        },
        tables=tables(race),
        timing={"masks": [{k: row[k] for k in ("heat", "method", "density", "seconds")} for row in rows]},
        files=pictures(race, context.folder),
    )


def _digest(key: str, method: RaceMethod) -> str | None:
    try:
        return method.digest()
    except NfoptError as error:
        raise NfoptError(f"method {key}: {error}") from error


def _piece_name(
    recipe: PruneRaceRecipe, name: str, seed: int, density: float, hashes: Mapping[str, str | None]
) -> str:
    heat = recipe.heats[name]
    values = heat.model_dump(mode="json", exclude={"data"})
    shared = recipe.model_dump(mode="json", include={"score_batches", "score_batch_size"})
    methods = [m.model_dump(mode="json", exclude={"label", "at_init"}) for m in recipe.methods.values()]
    keys = list(recipe.methods)
    hashed = digest(values, shared, data_key(heat.data), keys, methods, dict(hashes))
    return f"{name}-{density:g}-{hashed}-seed{seed}"


def _part(
    recipe: PruneRaceRecipe, name: str, seed: int, density: float, data: ImageData, context: RunContext
) -> JsonValue:
    """Return a row for every copy of one net at one density."""
    heat, device = recipe.heats[name], device_of(recipe.device)
    model = build(heat.model, data, seed, device)
    other = build(heat.model, data, seed + RESEED, device)
    made: list[tuple[dict[str, Any], nn.Module, PruningMask | None]] = []
    if density == 1.0:
        made.append(({"method": DENSE, "control": "none", "seconds": 0.0, "layers": None}, model, None))
    else:
        for key, method in recipe.methods.items():
            mask, seconds = _timed_mask(recipe, heat, method, model, density, seed, data, context)
            shuffled = mask.shuffled(torch.Generator().manual_seed(seed + RESEED))
            ways = {"none": (model, mask), "shuffled": (model, shuffled), "reinitialised": (other, mask)}
            for control in ("none", *(CONTROLS if method.controls else ())):
                row = {"method": key, "control": control, "seconds": seconds, "layers": mask.densities}
                made.append((row, *ways[control]))
    rows = []
    for start in range(0, len(made), recipe.side_by_side):
        group = made[start : start + recipe.side_by_side]
        copies = MaskedCopies.of([start for _, start, _ in group], [mask for _, _, mask in group])
        trained = train_copies(
            copies,
            data,
            _config(heat, seed),
            state_file=context.state_file(f"{name}-{density:g}-seed{seed}-{start}"),
            progress=context.progress,
            task=f"{name} {100 * density:g} %, seed {seed}",
        )
        for (row, _, _), score in zip(group, score_copies(trained, data.test), strict=True):
            rows.append(row | {"test_loss": _finite(score.loss), "test_accuracy": score.accuracy})
    return rows


def _finite(loss: float) -> float:
    """Return a loss that JSON can hold; a training that diverged has the largest."""
    return loss if loss < 1e30 else 1e30


def _config(heat: Heat, seed: int) -> CopiesConfig:
    return CopiesConfig(heat.total_steps, heat.batch_size, heat.lr, heat.weight_decay, seed)


def _timed_mask(
    recipe: PruneRaceRecipe,
    heat: Heat,
    method: RaceMethod,
    model: nn.Module,
    density: float,
    seed: int,
    data: ImageData,
    context: RunContext,
) -> tuple[PruningMask, float]:
    begun = time.perf_counter()
    mask = method.make(
        model,
        density,
        data,
        batch_size=recipe.score_batch_size,
        score_batches=recipe.score_batches,
        seed=seed,
        train=_alone(heat, seed, data, context.progress),
        progress=context.progress,
        score=method.resolved_score(),
    )
    return mask, time.perf_counter() - begun


def _alone(
    heat: Heat, seed: int, data: ImageData, progress: ProgressCallback
) -> Callable[[nn.Module, Mapping[str, Tensor]], None]:
    """Return the function that trains a model under a mask as the race does, for the score imp."""

    def run(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
        copies = MaskedCopies.of([model], [PruningMask.for_model(model, kept)])
        trained = train_copies(copies, data, _config(heat, seed), progress=progress, task="train for imp")
        model.load_state_dict(trained.state_of(0))

    return run
