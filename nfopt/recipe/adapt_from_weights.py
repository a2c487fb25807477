"""Job `adapt_from_weights`: classifiers of two classes, edited for a known shift from their weights alone."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, JsonValue
from torch import nn

from nfopt.data import ImageData
from nfopt.editing.editor import EditorConfig
from nfopt.meta.editor_from_weights import (
    ProposerTraining,
    ShiftedPairs,
    accuracies,
    finetuned,
    train_proposer,
)
from nfopt.meta.editor_proposers import (
    ConstantProposer,
    EditorProposer,
    FlatProposer,
    Proposer,
    SpecBoundProposer,
    input_atoms,
)
from nfopt.nn import NeuralFunctionalConfig
from nfopt.progress import Progress
from nfopt.recipe.adapt_options import DomainName
from nfopt.recipe.inputs import DataOptions, DeviceName, ModelOptions, device_of
from nfopt.recipe.job import JobResult, Recipe, RunContext, Table, job
from nfopt.recipe.records import record
from nfopt.recipe.strict import Count, Index, Positive, Strict
from nfopt.recipe.train_editor_options import Pictures
from nfopt.seeds import derive_seed, generator
from nfopt.zoo import Machine, Members, Zoo, binary_classifiers, load_zoo, save_zoo

NONE, ORACLE = "none", "oracle"


class ProposerOptions(Strict):
    """A proposer of changes.

    Attributes:
        kind: "editor" (role-tied), "layers" (spec-bound, with the options of a NeuralFunctional), "flat" (a
            perceptron of all weights), "constant" (one learned change for all nets).
        editor: configuration of an editor.
        layers: configuration of layers; the head is made equivariant.
        hidden: width of a flat one.
        training: how it is trained.
    """

    kind: Literal["editor", "layers", "flat", "constant"]
    editor: Annotated[EditorConfig, record(EditorConfig)] = Field(
        default_factory=lambda: EditorConfig(rounds=1, free=0.5, rescale=0.5, operators=1.0)
    )
    layers: Annotated[NeuralFunctionalConfig, record(NeuralFunctionalConfig)] = Field(
        default_factory=lambda: NeuralFunctionalConfig(
            layer="dws", head="equivariant", channels=8, depth=3, output_scale=0.01
        )
    )
    hidden: Count = 64
    training: Annotated[ProposerTraining, record(ProposerTraining)] = Field(default_factory=ProposerTraining)

    def build(self, zoo: Zoo, module: nn.Module, image_shape: tuple[int, ...], seed: int) -> Proposer:
        """Return the proposer for the nets of a zoo."""
        draw = generator(seed, "proposer")
        if self.kind == "constant":
            return ConstantProposer(zoo)
        if self.kind == "flat":
            return FlatProposer(zoo, self.hidden, draw)
        if self.kind == "editor":
            return EditorProposer(zoo, module, self.editor, image_shape, draw)
        # One weight for each pair of pixels would be too many: their positions tell them apart.
        wide = {"also_permuted": input_atoms(zoo.spec), "position": self.layers.position or "sinusoidal"}
        config = NeuralFunctionalConfig(**{**asdict(self.layers), **wide, "head": "equivariant"})
        return SpecBoundProposer(zoo, config, draw)


class AdaptFromWeightsRecipe(Recipe):
    """The keys of `kind: adapt_from_weights`.

    Attributes:
        data: the images.
        model: the architecture of the classifiers, of two outputs.
        nets: numbers of nets to train proposers on, to choose by, and to test on.
        net_steps: optimizer steps of a net's training.
        net_lr: its learning rate.
        domain: the shift, as "rotation:1+gaussian:4".
        proposers: by key, in the order of the table.
        finetune_steps: steps of the oracle and of fine-tuning by few labels.
        finetune_lr: their learning rate.
        shots: labels per class of fine-tuning by few labels.
        seed: of everything random.
        device: "auto", "cpu", "cuda" or "cuda:0".
    """

    data: DataOptions
    model: ModelOptions
    nets: tuple[Count, Count, Count] = (200, 24, 48)
    net_steps: Count = 300
    net_lr: Positive = 1e-3
    domain: DomainName
    proposers: Annotated[dict[str, ProposerOptions], Field(min_length=1)]
    finetune_steps: Count = 200
    finetune_lr: Positive = 1e-3
    shots: tuple[Count, ...] = (1, 5, 10)
    seed: Index = 0
    device: DeviceName = "auto"


def plan_adapt_from_weights(recipe: AdaptFromWeightsRecipe) -> list[str]:
    """Return what a run would do."""
    train, val, test = recipe.nets
    return [
        f"train {train} + {val} + {test} classifiers {recipe.model.name} of two random classes of "
        f"{recipe.data.name}, {recipe.net_steps} steps each",
        f"the shift: {recipe.domain}",
        *(
            f"train {key} ({proposer.kind}) for {proposer.training.total_steps} steps"
            for key, proposer in recipe.proposers.items()
        ),
        f"edit {test} nets from their weights alone; beside them fine-tuning with all labels (oracle) and "
        f"with {', '.join(map(str, recipe.shots))} per class",
    ]


@job("adapt_from_weights", AdaptFromWeightsRecipe, plan=plan_adapt_from_weights)
def run_adapt_from_weights(recipe: AdaptFromWeightsRecipe, context: RunContext) -> JobResult:
    """Train editors of several kinds on a zoo of classifiers, and edit others from their weights alone."""
    device = device_of(recipe.device)
    pictures = Pictures.of(recipe.data)
    data = pictures.data
    context.note_data(data.name, data.content_hash)
    zoo = _zoo(recipe, context, pictures, context.state_file("zoo")).to(device)
    module = recipe.model.build(_two(pictures), recipe.seed).to(device).eval().requires_grad_(False)
    shifted, plain = (
        {
            name: ShiftedPairs.of(
                pictures.in_domains(split, [domain], _seed(recipe, name))[domain].to(device), data.classes
            )
            for name, split in (("train", data.train), ("test", data.test))
        }
        for domain in (recipe.domain, "clean")
    )
    test = zoo.of("test")
    found: dict[str, dict[str, list[float]]] = {}

    def judged(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[float]]:
        return {
            "target": accuracies(module, test, tensors, shifted["test"]).tolist(),
            "clean": accuracies(module, test, tensors, plain["test"]).tolist(),
        }

    found[NONE] = context.piece("none", lambda: judged(test.tensors))  # pyright: ignore[reportArgumentType]
    for number, (key, options) in enumerate(recipe.proposers.items()):

        def proposed(key: str = key, options: ProposerOptions = options) -> Any:
            proposer = options.build(zoo.of("train"), module, data.in_shape, _seed(recipe, key)).to(device)
            loss = train_proposer(
                key,
                proposer,
                module,
                zoo.of("train"),
                zoo.of("val"),
                shifted["train"],
                options.training,
                _seed(recipe, "train", key),
                context.progress,
            )
            with torch.no_grad():
                changes = proposer(test.tensors)
            weights = sum(p.numel() for p in proposer.parameters() if p.requires_grad)
            scores = judged({name: t + changes[name] for name, t in test.tensors.items()})
            return {**scores, "validation_loss": loss, "weights": weights}

        found[key] = context.piece(f"proposer-{number}", proposed)
    for shots in (*recipe.shots, None):
        key = ORACLE if shots is None else f"{shots}-shot"
        tune: Any = partial(_finetuned, recipe, context, module, test, shifted["train"], shots, key)
        found[key] = context.piece(f"finetune-{key}", lambda tune=tune: judged(tune()))  # pyright: ignore[reportArgumentType]
    results: dict[str, JsonValue] = {"nets": found}  # pyright: ignore[reportAssignmentType]
    return JobResult(results, (_table(recipe, found),))


def _seed(recipe: AdaptFromWeightsRecipe, *path: str) -> int:
    return derive_seed(recipe.seed, *path)


def _two(pictures: Pictures) -> ImageData:
    return replace(pictures.data, classes=2)


def _zoo(recipe: AdaptFromWeightsRecipe, context: RunContext, pictures: Pictures, file: Path) -> Zoo:
    """Return the classifiers, trained on images as nets take them; kept in `file`."""
    if file.exists():
        return load_zoo(file)
    data = pictures.data
    splits = {name: pictures.prepared(getattr(data, name)) for name in ("train", "val", "test")}
    total = sum(recipe.nets)
    zoo = binary_classifiers(
        replace(data, **splits),
        Members.counted(*recipe.nets),
        lambda: recipe.model.build(_two(pictures), int(torch.randint(0, 2**31, ()))),
        seed=derive_seed(recipe.seed, "zoo"),
        learning_rate=recipe.net_lr,
        steps=recipe.net_steps,
        machine=Machine(device_of(recipe.device)),
        report=lambda done: context.progress(Progress("train classifiers", done, total)),
    )
    save_zoo(file, zoo)
    return zoo


def _finetuned(
    recipe: AdaptFromWeightsRecipe,
    context: RunContext,
    module: nn.Module,
    test: Zoo,
    pictures: ShiftedPairs,
    shots: int | None,
    key: str,
) -> Mapping[str, torch.Tensor]:
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        context.progress(Progress(f"fine-tune, {key}", done, recipe.finetune_steps))

    return finetuned(
        module,
        test,
        pictures,
        total_steps=recipe.finetune_steps,
        lr=recipe.finetune_lr,
        seed=_seed(recipe, "finetune"),
        shots=shots,
        after_step=step,
    )


def _table(recipe: AdaptFromWeightsRecipe, found: Mapping[str, Any]) -> Table:
    none, oracle = (fmean(found[key]["target"]) for key in (NONE, ORACLE))
    rows = []
    for key, scores in found.items():
        values = scores["target"]
        gains = [100 * (after - before) for after, before in zip(values, found[NONE]["target"], strict=True)]
        error = f" ± {stdev(gains) / len(gains) ** 0.5:.1f}" if len(gains) > 1 else ""
        mean = fmean(values)
        rows.append(
            (
                key,
                f"{100 * mean:.1f}",
                "" if key == NONE else f"{fmean(gains):+.1f}{error}",
                f"{(mean - none) / (oracle - none):.2f}" if oracle - none > 1e-6 else "",
                f"{(mean - none) / (1 - none):.2f}" if none < 1 else "",
                f"{100 * fmean(scores['clean']):.1f}",
                f"{scores['weights']:,}" if "weights" in scores else "",
            )
        )
    columns = (
        "method",
        "shifted\nacc. %",
        "gain,\npoints",
        "share of\noracle",
        "share\nto 100",
        "clean\nacc. %",
        "learned\nweights",
    )
    notes = (
        f"{recipe.nets[2]} unseen classifiers of two classes of {recipe.data.name}; shift {recipe.domain}. "
        "Editors see the weights alone; ±: standard error over nets.",
        f"shots and {ORACLE} see labels of the target: that many per class, and all of the training images.",
    )
    return Table("Editing from weights alone", columns, tuple(rows), notes)
