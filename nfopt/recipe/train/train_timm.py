"""Job `train`: any timm model, or one of one's own, on images, with nfopt or another optimizer.

One process or many: `torchrun --nproc-per-node=4 -m nfopt run recipes/train_timm.yaml`, or the same with
`accelerate launch`. The numbers of processes change the results by rounding only, unless the model has
BatchNorm, whose statistics are those of each process's share of a batch.
"""

import time
from typing import Annotated, Any, ClassVar, Literal

import torch
from accelerate import Accelerator
from pydantic import Field, field_validator
from safetensors.torch import load_file
from torch import nn

from nfopt.errors import RecipeError
from nfopt.models import build_model
from nfopt.progress import Progress
from nfopt.recipe.inputs import DeviceName, ModelOptions, device_of
from nfopt.recipe.job import JobResult, Recipe, RunContext, job
from nfopt.recipe.optimizers import NFOptions, OptimizerChoice, OptimizerOptions
from nfopt.recipe.processes import from_first, is_first, process_count, wait_for_all
from nfopt.recipe.scoring import evaluated
from nfopt.recipe.strict import Count, Fraction, Index, Positive
from nfopt.recipe.train.epochs import BEST, LAST, EpochConfig, Standing, train_epochs
from nfopt.recipe.train.images import Augmentation, DataChoice, FolderOptions, ImageSets, load_images
from nfopt.recipe.train.report import plot_epochs, table_of

PIECE = "training"
PRECISIONS = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}
# What a model's forward pass raises on images of a shape that it does not take.
FORWARD_ERRORS = (RuntimeError, TypeError, ValueError, AssertionError, LookupError, AttributeError)


class TrainRecipe(Recipe):
    """The keys of `kind: train`.

    Attributes:
        data: a data set by name, or `folder:` with pictures by class.
        model: the model.
        optimizer: nfopt, or any other by name; learning-rate schedules end with the last epoch.
        epochs: passes over the training images, each followed by an evaluation.
        batch_size: images per optimizer step over all processes.
        accumulate: parts that each process computes its share of a batch in, to save memory.
        precision: of the forward pass; weights and optimizer state stay float32.
        max_grad_norm: clips the gradients to this norm.
        label_smoothing: share of the target's weight that is spread over all classes.
        augment: how training images are varied.
        seed: fixes the initial weights, the order of the images, augmentation and dropout.
        workers: processes that read images ahead.
        save_every: steps between saves of the unfinished state.
        device: "auto", "cpu", "cuda" or "cuda:0".
    """

    many_processes: ClassVar[bool] = True

    data: DataChoice
    model: ModelOptions
    optimizer: OptimizerChoice = NFOptions(name="nfopt")
    epochs: Count
    batch_size: Count = 128
    accumulate: Count = 1
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    max_grad_norm: Positive | None = None
    label_smoothing: Annotated[Fraction, Field(lt=1)] = 0.0
    augment: Augmentation = Augmentation()
    seed: Index = 0
    workers: Index = 0
    save_every: Count = 200
    device: DeviceName = "auto"

    @field_validator("optimizer")
    @classmethod
    def _is_one(cls, optimizer: OptimizerOptions) -> OptimizerOptions:
        if optimizer.tune:
            raise ValueError("is trained once; `tune` is for `kind: compare`.")
        return optimizer


def plan_train(recipe: TrainRecipe) -> list[str]:
    """Return what a run would do."""
    data = recipe.data.folder if isinstance(recipe.data, FolderOptions) else recipe.data.name
    return [
        f"train {recipe.model.name} on {data} with {recipe.optimizer.label or recipe.optimizer.name}, "
        f"{recipe.epochs} epochs in batches of {recipe.batch_size}, {recipe.precision}",
        "after each epoch: evaluate, and keep the last and the best weights",
        "in the end: test both, and draw the curves",
    ]


@job("train", TrainRecipe, plan=plan_train)
def run_train(recipe: TrainRecipe, context: RunContext) -> JobResult:
    """Train one classifier with one optimizer under accelerate, in one process or many."""
    recipe.optimizer.check_installed()
    accelerator = _accelerator(recipe)
    sets = load_images(recipe.data, recipe.augment, recipe.seed)
    _check_batch(recipe, sets)
    if is_first():
        context.note_data(sets.name, sets.content_hash)
        for name, content_hash in recipe.optimizer.weight_hashes().items():
            context.note_data(name, content_hash)
    timing: dict[str, float] = {}
    if from_first((context.folder / "pieces" / f"{PIECE}.json").is_file):
        result = context.piece(PIECE, dict)
    else:
        result = _train(recipe, sets, accelerator, context, timing)
        if is_first():
            context.piece(PIECE, lambda: result)
        wait_for_all()
    figure = context.folder / "curves.png"
    if is_first():
        plot_epochs(figure, result["epochs"], title=_title(recipe, sets))
    files = [figure, *(context.folder / name for name in (BEST, LAST) if result["epochs"])]
    return JobResult(
        results=result, tables=(table_of(result, _title(recipe, sets)),), timing=timing, files=files
    )


def _title(recipe: TrainRecipe, sets: ImageSets) -> str:
    method = recipe.optimizer.label or recipe.optimizer.name
    return f"{recipe.model.name} on {sets.name} with {method}, {recipe.epochs} epochs"


def _accelerator(recipe: TrainRecipe) -> Accelerator:
    device = device_of(recipe.device)
    if recipe.precision == "fp16" and device.type == "cpu":
        raise RecipeError("precision: fp16 needs a CUDA device; give bf16 or float32.")
    if device.index is not None and process_count() == 1:
        torch.cuda.set_device(device)
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=PRECISIONS[recipe.precision],
        gradient_accumulation_steps=recipe.accumulate,
    )


def _check_batch(recipe: TrainRecipe, sets: ImageSets) -> None:
    if recipe.batch_size > len(sets.train):
        raise RecipeError(
            f"batch_size is {recipe.batch_size}, but {sets.name} has {len(sets.train)} training images. "
            "Give a smaller batch_size."
        )
    parts = recipe.accumulate * process_count()
    if recipe.batch_size % parts:
        raise RecipeError(
            f"batch_size is {recipe.batch_size}, which {process_count()} processes in {recipe.accumulate} "
            f"parts each cannot share evenly. Give a multiple of {parts}."
        )


def _train(
    recipe: TrainRecipe,
    sets: ImageSets,
    accelerator: Accelerator,
    context: RunContext,
    timing: dict[str, float],
) -> dict[str, Any]:
    model = build_model(
        recipe.model.name, sets.in_shape, sets.classes, seed=recipe.seed, options=recipe.model.options
    ).to(accelerator.device)
    example = sets.val.__getitems__([(0, 0), (1, 0)])[0].to(accelerator.device)
    _check_outputs(model, example, recipe.model.name, sets)
    total_steps = recipe.epochs * (len(sets.train) // recipe.batch_size)
    optimization = recipe.optimizer.build(model, (example,), total_steps)
    config = EpochConfig(
        recipe.epochs,
        recipe.batch_size,
        recipe.accumulate,
        recipe.max_grad_norm,
        recipe.label_smoothing,
        recipe.seed,
        recipe.workers,
        recipe.save_every,
    )
    state = from_first(lambda: context.state_file(PIECE))
    start = time.perf_counter()
    taken: list[int] = []

    def count_steps(progress: Progress) -> None:
        taken.append(progress.done)
        context.progress(progress)

    standing = train_epochs(
        model,
        sets,
        optimization,
        config,
        accelerator,
        state_file=state,
        folder=context.folder,
        progress=count_steps,
    )
    seconds = time.perf_counter() - start
    timing["images_per_second"] = (taken[-1] - taken[0] + 1) * recipe.batch_size / seconds
    return _result(standing, model, sets, accelerator, context, recipe.workers)


def _check_outputs(model: nn.Module, example: torch.Tensor, name: str, sets: ImageSets) -> None:
    """Raise RecipeError unless the model turns images of this shape into one logit per class."""
    shape = "x".join(map(str, sets.in_shape))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            outputs = model(example)
    except FORWARD_ERRORS as error:
        first_line = str(error).partition("\n")[0]
        raise RecipeError(
            f"{name} does not run on the {shape} images of {sets.name}: {type(error).__name__}: "
            f"{first_line}. Set data.resize or data.side, or the model's options (such as img_size)."
        ) from error
    finally:
        model.train(was_training)
    found = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
    if found != (2, sets.classes):
        raise RecipeError(
            f"{name} answers two images of {sets.name} with {found}, not with (2, {sets.classes}): one logit "
            f"for each of the {sets.classes} classes. Let the factory's argument `classes` size the head."
        )


def _result(
    standing: Standing,
    model: nn.Module,
    sets: ImageSets,
    accelerator: Accelerator,
    context: RunContext,
    workers: int,
) -> dict[str, Any]:
    """Test the last and the best weights."""
    tests: dict[str, dict[str, float]] = {}
    module = accelerator.unwrap_model(model)
    if standing.epochs and sets.test is not None:
        wait_for_all()
        for name, file in (("last", LAST), ("best", BEST)):
            module.load_state_dict(load_file(context.folder / file))
            loss, accuracy = evaluated(module, sets.test, sets.classes, accelerator, workers)
            tests[name] = {"test_loss": loss, "test_accuracy": accuracy}
    return {
        "classes": list(sets.class_names),
        "images": {
            "train": len(sets.train),
            "val": len(sets.val),
            "test": 0 if sets.test is None else len(sets.test),
        },
        "epochs": list(standing.epochs),
        "best_epoch": standing.best_epoch,
        "diverged_at_step": standing.step if standing.diverged else None,
        "test": tests,
    }
