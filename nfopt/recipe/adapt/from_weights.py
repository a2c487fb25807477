"""Job `adapt_from_weights`: classifiers of two classes, edited for known shifts from their weights alone."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, JsonValue
from torch import nn

from nfopt.data import ImageData
from nfopt.meta.editor_from_weights import ShiftedPairs, accuracies, finetuned, train_proposer
from nfopt.progress import Progress
from nfopt.recipe.adapt.from_weights_report import NONE, ORACLE, weights_tables
from nfopt.recipe.adapt.options import DomainName
from nfopt.recipe.adapt.proposers import ProposerOptions, aligned
from nfopt.recipe.adapt.train_editor_options import Pictures
from nfopt.recipe.inputs import DataOptions, DeviceName, ModelOptions, device_of
from nfopt.recipe.job import JobResult, Recipe, RunContext, job
from nfopt.recipe.strict import Count, Index, Positive
from nfopt.seeds import derive_seed
from nfopt.zoo import Machine, Members, Zoo, binary_classifiers, load_zoo, save_zoo


class AdaptFromWeightsRecipe(Recipe):
    """The keys of `kind: adapt_from_weights`.

    Attributes:
        data: the images.
        model: the architecture of the classifiers, of two outputs.
        nets: numbers of nets to train proposers on, to choose by, and to test on.
        net_steps: optimizer steps of a net's training.
        net_lr: its learning rate.
        domains: the shifts, as "rotation:1+gaussian:4"; proposers are trained for each anew.
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
    domains: Annotated[tuple[DomainName, ...], Field(min_length=1)]
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
        f"{len(recipe.domains)} shifts: {', '.join(recipe.domains)}",
        *(
            f"train {key} ({proposer.kind}) for {proposer.training.total_steps} steps"
            + (f", {len(proposer.lrs)} times" if len(proposer.lrs) > 1 else "")
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
    context.note_data(pictures.data.name, pictures.data.content_hash)
    zoo = _zoo(recipe, context, pictures, context.state_file("zoo")).to(device)
    module = recipe.model.build(_two(pictures), recipe.seed).to(device).eval().requires_grad_(False)
    nets = _Nets(zoo, context)
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for place, domain in enumerate(recipe.domains):
        shift = _Shift.of(recipe, pictures, domain, module, device)
        found[domain] = {NONE: context.piece(f"{place}-none", partial(shift.judged, zoo.of("test")))}
        for number, (key, options) in enumerate(recipe.proposers.items()):
            propose: Any = partial(_proposed, recipe, context, shift, nets, key, options)
            found[domain][key] = context.piece(f"{place}-proposer-{number}", propose)
        for shots in (*recipe.shots, None):
            key = ORACLE if shots is None else f"{shots}-shot"
            tune: Any = partial(_finetuned, recipe, context, shift, zoo.of("test"), shots, key)
            found[domain][key] = context.piece(f"{place}-finetune-{key}", tune)
    results: dict[str, JsonValue] = {"nets": found}  # pyright: ignore[reportAssignmentType]
    return JobResult(results, weights_tables(found, recipe.nets[2], pictures.data.name))


@dataclass(frozen=True, eq=False)
class _Nets:
    """The zoo, and the same nets with matched neurons."""

    zoo: Zoo
    context: RunContext

    @cached_property
    def aligned(self) -> Zoo:
        return aligned(self.zoo, self.context.progress)


@dataclass(frozen=True, eq=False)
class _Shift:
    """One shift: images to learn on, and to judge by, shifted and plain."""

    name: str
    module: nn.Module
    train: ShiftedPairs
    test: ShiftedPairs
    plain: ShiftedPairs

    @classmethod
    def of(
        cls,
        recipe: AdaptFromWeightsRecipe,
        pictures: Pictures,
        domain: str,
        module: nn.Module,
        device: torch.device,
    ) -> "_Shift":
        data = pictures.data
        found = []
        for split, name, shown in (
            (data.train, "train", domain),
            (data.test, "test", domain),
            (data.test, "test", "clean"),
        ):
            images = pictures.in_domains(split, [shown], _seed(recipe, name))[shown]
            found.append(ShiftedPairs.of(images.to(device), data.classes))
        return cls(domain, module, *found)

    def judged(self, test: Zoo, changes: Mapping[str, torch.Tensor] | None = None) -> Any:
        """Return the accuracies of test nets, with changes added to their tensors."""
        tensors = dict(test.tensors)
        for name, change in (changes or {}).items():
            tensors[name] = tensors[name] + change
        return {
            "target": accuracies(self.module, test, tensors, self.test).tolist(),
            "clean": accuracies(self.module, test, tensors, self.plain).tolist(),
        }


def _proposed(
    recipe: AdaptFromWeightsRecipe,
    context: RunContext,
    shift: _Shift,
    nets: _Nets,
    key: str,
    options: ProposerOptions,
) -> dict[str, Any]:
    """Train a proposer, once for each learning rate, and judge the one that is best on validation nets."""
    zoo = nets.aligned if options.aligned else nets.zoo
    image_shape = tuple(shift.train.images.shape[1:])
    device = shift.train.images.device
    tried: dict[float, float] = {}
    best: dict[str, Any] = {}
    for training in options.trainings():
        proposer = options.build(zoo.of("train"), shift.module, image_shape, _seed(recipe, key)).to(device)
        loss = train_proposer(
            f"{key} for {shift.name}",
            proposer,
            shift.module,
            zoo.of("train"),
            zoo.of("val"),
            shift.train,
            training,
            _seed(recipe, "train", key),
            context.progress,
        )
        if not tried or loss < min(tried.values()):
            with torch.no_grad():
                best = shift.judged(zoo.of("test"), proposer(zoo.of("test").tensors))
            weights = sum(p.numel() for p in proposer.parameters() if p.requires_grad)
            best |= {"validation_loss": loss, "lr": training.lr, "weights": weights}
        tried[training.lr] = loss
    return best


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
    shift: _Shift,
    test: Zoo,
    shots: int | None,
    key: str,
) -> dict[str, Any]:
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        context.progress(Progress(f"fine-tune, {key}, for {shift.name}", done, recipe.finetune_steps))

    tuned = finetuned(
        shift.module,
        test,
        shift.train,
        total_steps=recipe.finetune_steps,
        lr=recipe.finetune_lr,
        seed=_seed(recipe, "finetune"),
        shots=shots,
        after_step=step,
    )
    return shift.judged(test, {name: tuned[name] - tensor for name, tensor in test.tensors.items()})
