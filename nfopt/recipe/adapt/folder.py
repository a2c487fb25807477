"""Job `adapt_folder`: an edit of the user's own model for a folder of pictures of the new domain."""

from pathlib import Path
from typing import Annotated, Any

import timm
import torch
from pydantic import Field, JsonValue
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.data.config import resolve_data_config
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader
from torchvision.transforms import v2

from nfopt.atomic import replacing
from nfopt.data import Split
from nfopt.editing import Gate
from nfopt.editing.inputs import digest_of_set
from nfopt.errors import DataError, RecipeError, unknown_name
from nfopt.models import build_model
from nfopt.recipe.adapt.options import GateOptions, Steps, edit_in_steps, needs_labels, touched
from nfopt.recipe.adapt.report import plot_edit, table_of_edit
from nfopt.recipe.inputs import DeviceName, ModelOptions, device_of
from nfopt.recipe.job import JobResult, Recipe, RunContext, job
from nfopt.recipe.strict import Count, Fraction, Index, Strict
from nfopt.seeds import derive_seed

PIECE = "edit"


class Pictures(Strict):
    """Pictures in a folder, anywhere below it, or in folder/CLASS/ if their classes are known.

    Attributes:
        folder: where they lie.
        labelled: whether the names of the folders in it are classes.
        at_most: so many of them are read, drawn by the recipe's seed.
    """

    folder: Path
    labelled: bool = False
    at_most: Count = 256


class AdaptFolderRecipe(Recipe):
    """The keys of `kind: adapt_folder`.

    Attributes:
        model: the model, a timm name, one of nfopt's, or package.module:factory.
        weights: a safetensors file of its state; null for those that a timm model comes with (downloaded).
        class_names: the model's classes in the order of its outputs.
        side: height and width in pixels that the model sees; the shorter side is resized to it, the middle
            cut out, and values standardised as timm has it for the model, or as for ImageNet.
        target: pictures of the new domain.
        held_out: share of labelled target pictures that only the gate sees.
        source: pictures of the old domain with their classes, for the gate; null for none.
        steps: the edit, one method after the other.
        gate: bounds of the gate.
        seed: which pictures, and everything random.
        device: "auto", "cpu", "cuda" or "cuda:0".
    """

    model: ModelOptions
    weights: Path | None = None
    class_names: Annotated[tuple[str, ...], Field(min_length=2)]
    side: Count = 224
    target: Pictures
    held_out: Fraction = 0.5
    source: Pictures | None = None
    steps: Steps
    gate: GateOptions = Gate()
    seed: Index = 0
    device: DeviceName = "auto"


def plan_adapt_folder(recipe: AdaptFolderRecipe) -> list[str]:
    """Return what a run would do, with the pictures found and the tensors that each step may change.

    Weights that are given are read, so that absent or unfitting ones are said before any work is done.
    """
    _check_labels(recipe)
    model = (untrained_model(recipe) if recipe.weights is None else load_model(recipe)).eval()
    weights = recipe.weights or "the weights that timm has for it"
    lines = [f"{recipe.model.name} with {weights}, {len(recipe.class_names)} classes"]
    for word, pictures in (("target", recipe.target), ("source", recipe.source)):
        if pictures is not None:
            found = find_pictures(pictures, recipe.class_names)
            used = min(len(found), pictures.at_most)
            lines.append(f"{word}: {len(found)} pictures in {pictures.folder}, {used} of them used")
    example = torch.zeros(2, 3, recipe.side, recipe.side)
    for number, step in enumerate(recipe.steps, 1):
        lines.append(f"  step {number}: {step.method}; {touched(model, step, example)}")
    lines.append("the gate judges; edit.safetensors and, if it is accepted, edited.safetensors are written")
    return lines


@job("adapt_folder", AdaptFolderRecipe, plan=plan_adapt_folder)
def run_adapt_folder(recipe: AdaptFolderRecipe, context: RunContext) -> JobResult:
    """Edit one's own model for a folder of pictures of a new domain, with a gate."""
    _check_labels(recipe)
    device = device_of(recipe.device)
    target = _read(recipe, recipe.target, "target")
    source = None if recipe.source is None else _read(recipe, recipe.source, "source")
    context.note_data("target", digest_of_set(target.images, target.labels))
    if source is not None:
        context.note_data("source", digest_of_set(source.images, source.labels))
        source = source if recipe.source is not None and recipe.source.labelled else None
    labels, held_out = None, None
    if recipe.target.labelled:
        kept = round(recipe.held_out * len(target))
        if kept:
            held_out, target = target[torch.arange(kept)], target[torch.arange(kept, len(target))]
        labels = target.labels
    model = load_model(recipe).to(device).eval()
    edit = edit_in_steps(
        model,
        recipe.steps,
        target.images,
        labels=labels,
        source=source,
        held_out=held_out,
        gate=recipe.gate,
        seed=recipe.seed,
        progress=context.progress,
    )
    files = [context.folder / "edit.safetensors", context.folder / "edit.md"]
    edit.save(files[0])
    if edit.accepted:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        files.append(context.folder / "edited.safetensors")
        with replacing(files[-1]) as partial:
            save_file(edit.edited_state(state), partial)
    title = f"{recipe.model.name} for {recipe.target.folder.name}: {edit.method}, {len(target)} images"
    files.append(context.folder / "scores.png")
    plot_edit(files[-1], edit, title)
    results: dict[str, JsonValue] = {
        "accepted": edit.accepted,
        "reasons": list(edit.reasons),
        "base": edit.base_digest,
        "result": edit.result_digest,
        "changed_tensors": len(edit.changed),
        "steps": [step.as_json() for step in edit.history],
    }
    return JobResult(results=results, tables=(table_of_edit(edit, title),), files=files)


def _check_labels(recipe: AdaptFolderRecipe) -> None:
    if needs_labels(recipe.steps) and not recipe.target.labelled:
        raise RecipeError(
            "a step learns from labels; set target.labelled: true, with pictures in folder/CLASS/."
        )


def find_pictures(pictures: Pictures, class_names: tuple[str, ...]) -> list[tuple[Path, int]]:
    """Return the files of a folder, sorted, with their classes by number, -1 where it is not labelled.

    Raises:
        DataError: there is no such folder, no picture in it, or a folder that is no class.
    """
    folder = pictures.folder
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}. Put the pictures of the domain there.")
    found = [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in IMG_EXTENSIONS]
    if not found:
        raise DataError(f"there are no pictures below {folder}; known are {', '.join(IMG_EXTENSIONS)}.")
    if not pictures.labelled:
        return [(file, -1) for file in found]
    numbers = {name: number for number, name in enumerate(class_names)}
    labelled = []
    for file in found:
        name = file.relative_to(folder).parts[0]
        if name not in numbers:
            raise DataError(
                f"{file}: {unknown_name('class', name, class_names)} The folders in {folder} must be named "
                "as in class_names; or set labelled: false."
            )
        labelled.append((file, numbers[name]))
    return labelled


def _read(recipe: AdaptFolderRecipe, pictures: Pictures, word: str) -> Split:
    found = find_pictures(pictures, recipe.class_names)
    generator = torch.Generator().manual_seed(derive_seed(recipe.seed, word))
    order = torch.randperm(len(found), generator=generator)[: pictures.at_most].tolist()
    transform = _transform(recipe)
    images = [_picture(found[number][0], transform) for number in order]
    return Split(torch.stack(images), torch.tensor([found[number][1] for number in order]))


def _transform(recipe: AdaptFolderRecipe) -> Any:
    config: dict[str, Any] = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    if timm.is_model(recipe.model.name):
        config = resolve_data_config({}, pretrained_cfg=_timm_config(recipe.model.name))
    return v2.Compose(
        [
            v2.Resize(recipe.side, antialias=True),
            v2.CenterCrop(recipe.side),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(config["mean"], config["std"]),
        ]
    )


def _timm_config(name: str) -> dict[str, Any]:
    config = timm.get_pretrained_cfg(name)
    return config.to_dict() if config is not None else {}


def _picture(file: Path, transform: Any) -> Tensor:
    try:
        return transform(v2.functional.pil_to_tensor(default_loader(str(file))))
    except OSError as error:
        raise DataError(f"{file} cannot be read as a picture: {error}. Remove or replace it.") from error


def untrained_model(recipe: AdaptFolderRecipe) -> nn.Module:
    """Return the model of a recipe, untrained."""
    shape, options = (3, recipe.side, recipe.side), dict(recipe.model.options)
    return build_model(recipe.model.name, shape, len(recipe.class_names), options=options)


def load_model(recipe: AdaptFolderRecipe) -> nn.Module:
    """Return the model of a recipe with its weights.

    Raises:
        RecipeError: the weights are absent or do not fit.
    """
    options: dict[str, Any] = dict(recipe.model.options)
    classes = len(recipe.class_names)
    if recipe.weights is None:
        if not timm.is_model(recipe.model.name):
            raise RecipeError(f"weights: {recipe.model.name} comes without weights; give a safetensors file.")
        try:
            return timm.create_model(recipe.model.name, pretrained=True, num_classes=classes, **options)
        except (RuntimeError, OSError, ValueError, TypeError) as error:
            raise RecipeError(
                f"the weights of {recipe.model.name} cannot be fetched: {error}. Give weights: FILE."
            ) from error
    model = untrained_model(recipe)
    try:
        model.load_state_dict(load_file(recipe.weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RecipeError(
            f"weights: {recipe.weights} is not a state of {recipe.model.name} with {classes} classes: {error}"
        ) from error
    return model
