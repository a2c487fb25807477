"""Job `train_editor`: nets are trained side by side, and an editor learns to edit them for other domains."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pydantic import Field, JsonValue

from nfopt.atomic import replacing
from nfopt.checkpoints import save_checkpoint
from nfopt.data import Split
from nfopt.editing.editor import EditorConfig, StatisticsConfig, editor_checkpoint
from nfopt.meta.editor_tasks import CLEAN, EditingNets, TaskShape
from nfopt.meta.editor_trainer import EditorTrainer, EditorTrainerConfig, fresh_editor
from nfopt.recipe.adapt.options import DomainName
from nfopt.recipe.adapt.train_editor_options import NetsOptions, Pictures, TaskOptions, halves, trained_nets
from nfopt.recipe.inputs import DataOptions, DeviceName, device_of
from nfopt.recipe.job import JobResult, Recipe, RunContext, Table, job
from nfopt.recipe.plots import COLOURS
from nfopt.recipe.records import record
from nfopt.recipe.strict import Fraction
from nfopt.seeds import derive_seed
from nfopt.statefile import load_state, save_state


class EditedNetsOptions(NetsOptions):
    """Nets for an editor to learn on.

    Attributes:
        data: the images of these nets; null for those of the recipe.
    """

    data: DataOptions | None = None


class TrainEditorRecipe(Recipe):
    """The keys of `kind: train_editor`.

    Attributes:
        data: the images of all nets that name none of their own; only the training split is used.
        nets: nets to learn on, by a name of one's own: several widths and families make an editor general.
        nets_share: share of the training images that the nets learn from; the editor sees the others.
        domains: corruptions with severities that the editor learns on; "clean" is always among them.
        tasks: what a task is.
        editor: bounds and sizes of the editor.
        statistics: bounds and sizes of a statistics editor, which is trained in the place of `editor`.
        training: how it is trained.
        device: "auto", "cpu", "cuda" or "cuda:0".
    """

    data: DataOptions
    nets: Annotated[dict[str, EditedNetsOptions], Field(min_length=1)]
    nets_share: Fraction = 0.5
    domains: Annotated[tuple[DomainName, ...], Field(min_length=1)]
    tasks: TaskOptions = Field(default_factory=TaskOptions)
    editor: Annotated[EditorConfig, record(EditorConfig)] = Field(default_factory=EditorConfig)
    statistics: Annotated[StatisticsConfig, record(StatisticsConfig)] | None = None
    training: Annotated[EditorTrainerConfig, record(EditorTrainerConfig)] = Field(
        default_factory=EditorTrainerConfig
    )
    device: DeviceName = "auto"

    def config(self) -> EditorConfig | StatisticsConfig:
        """Return the configuration of the editor that is trained."""
        return self.editor if self.statistics is None else self.statistics


def plan_train_editor(recipe: TrainEditorRecipe) -> list[str]:
    """Return what a run would do."""
    judges = sum(nets.val for nets in recipe.nets.values())
    weights = sum(p.numel() for p in fresh_editor(recipe.config()).parameters())
    return [
        *(
            f"train {nets.train} + {nets.val} nets {name}: {nets.model.name}, {nets.total_steps} steps on "
            f"{recipe.nets_share:.0%} of the training images of {(nets.data or recipe.data).name}"
            for name, nets in recipe.nets.items()
        ),
        f"train an editor of {weights:,} weights for {recipe.training.total_steps} steps of "
        f"{recipe.training.nets} nets, shown {', '.join(dict.fromkeys(recipe.training.uses))}",
        f"{len(recipe.domains)} domains and clean: {', '.join(recipe.domains)}",
        f"every {recipe.training.check_every} steps, try its average on the {judges} validation nets",
        "write checkpoint.safetensors with the best average, or the fresh editor if none was better",
    ]


@job("train_editor", TrainEditorRecipe, plan=plan_train_editor)
def run_train_editor(recipe: TrainEditorRecipe, context: RunContext) -> JobResult:
    """Train an editor of weights on nets shown corrupted images, and write its checkpoint."""
    best = context.folder / "best.safetensors"
    summary = context.piece("editor", lambda: _train(recipe, context, best))
    editor = fresh_editor(recipe.config())
    editor.load_state_dict(load_state(best))
    card: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json", exclude={"output", "provenance"}),
        "summary": summary,
        "uses": list(dict.fromkeys(recipe.training.uses)),
        "torch": str(torch.__version__),
    }
    place = context.folder / "checkpoint.safetensors"
    checkpoint = editor_checkpoint(editor, card)
    save_checkpoint(place, checkpoint, overwrite=True)
    figure = context.folder / "training.png"
    _plot(figure, summary["history"])
    results: dict[str, JsonValue] = {"summary": summary, "digest": checkpoint.digest}
    return JobResult(results, (_table(summary),), files=(place, figure))


@dataclass(frozen=True, eq=False)
class _Source:
    """One data set: the images that nets learn from, and the others as each domain shows them."""

    pictures: Pictures
    mine: Split
    domains: dict[str, Split]


def _source(recipe: TrainEditorRecipe, context: RunContext, data: DataOptions, noted: str) -> _Source:
    pictures = Pictures.of(data)
    context.note_data(noted, pictures.data.content_hash)
    seed = recipe.training.seed
    mine, others = halves(pictures.data.train, recipe.nets_share, seed)
    shown = pictures.in_domains(others, recipe.domains, derive_seed(seed, "domains"))
    device = device_of(recipe.device)
    return _Source(pictures, mine, {name: split.to(device) for name, split in shown.items()})


def _train(recipe: TrainEditorRecipe, context: RunContext, best: Path) -> JsonValue:
    device = device_of(recipe.device)
    seed = recipe.training.seed
    sides: tuple[list[EditingNets], list[EditingNets]] = ([], [])
    sources: dict[str, _Source] = {}
    for name, options in recipe.nets.items():
        given = options.data or recipe.data
        if repr(given) not in sources:
            noted = given.name if options.data is None else f"{given.name} of {name}"
            sources[repr(given)] = _source(recipe, context, given, noted)
        source = sources[repr(given)]
        template, tensors = trained_nets(
            options,
            source.pictures,
            source.mine,
            options.train + options.val,
            derive_seed(seed, "nets", name),
            context.state_file(f"nets-{name}"),
            device,
            context.progress,
        )
        for side, part in zip(sides, (slice(options.train), slice(options.train, None)), strict=True):
            side.append(EditingNets.of(template, {n: t[part] for n, t in tensors.items()}, source.domains))
    shape = TaskShape(domains=tuple(dict.fromkeys([CLEAN, *recipe.domains])), **recipe.tasks.model_dump())
    trained = EditorTrainer(
        recipe.training,
        recipe.config(),
        *sides,
        shape,
        state=context.state_file("editor"),
        progress=context.progress,
    ).run()
    save_state(best, dict(trained.editor.cpu().state_dict()))
    return {
        "step": trained.step,
        "unlearned_loss": trained.history[0][1],
        "loss": min(loss for _, loss in trained.history),
        "history": [list(pair) for pair in trained.history],
        "editor": asdict(recipe.config()),
    }


def _table(summary: dict[str, Any]) -> Table:
    chosen = f"step {summary['step']}" if summary["step"] else "the fresh editor: nothing learned was better"
    row = (chosen, f"{summary['unlearned_loss']:.4f}", f"{summary['loss']:.4f}")
    note = "Loss of edited validation nets on images of their domain, on domains of the training."
    return Table("An editor of weights", ("chosen", "fresh editor", "learned"), (row,), (note,))


def _plot(path: Path, history: list[tuple[int, float]]) -> None:
    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([s for s, _ in history], [v for _, v in history], marker="o", markersize=3, color=COLOURS[0])
    axes.axhline(history[0][1], color="grey", linewidth=0.8, linestyle="--", label="fresh editor")
    axes.set(xlabel="step", ylabel="validation loss of edited nets")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150, format="png")
