"""Training one classifier with one optimizer: model, data and optimizer to a curve, resumable to the bit."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LRScheduler

from nfopt.data import ImageData, Split
from nfopt.errors import NfoptError
from nfopt.metrics import Scores, evaluate
from nfopt.progress import Progress, ProgressCallback, silent
from nfopt.statefile import load_state, save_state


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Settings that every method of a comparison shares.

    Attributes:
        total_steps: optimizer steps.
        batch_size: images per step, drawn without replacement within an epoch.
        evaluate_every: steps between the points of the curve; the first and the last step are always points.
        seed: fixes the order of the batches and everything random inside the model (dropout).
        save_every_s: seconds between saves of the unfinished state; it does not change any number.
    """

    total_steps: int
    batch_size: int
    evaluate_every: int
    seed: int = 0
    save_every_s: float = 5.0

    def __post_init__(self) -> None:
        if min(self.total_steps, self.batch_size, self.evaluate_every) < 1:
            raise NfoptError(f"total_steps, batch_size and evaluate_every must be at least 1, not {self}.")


def as_trained(model: nn.Module, images: Tensor) -> AbstractContextManager[None]:
    """Leave the model as it is: most optimizers evaluate the weights that they train."""
    return nullcontext()


@dataclass(frozen=True, slots=True)
class Optimization:
    """An optimizer and, if it has none of its own, the schedule that is stepped after it.

    Attributes:
        optimizer: over the model's parameters.
        scheduler: stepped after every step of the optimizer; None for none.
        evaluating: given the model and the training images, a context within which the model is as it should
            be evaluated, and after which it is, to the bit, as it was before. For optimizers that train one
            point and answer with another, such as an average.
    """

    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler | None = None
    evaluating: Callable[[nn.Module, Tensor], AbstractContextManager[None]] = as_trained


@dataclass(frozen=True)
class Curve:
    """What one training came to. JSON values throughout: `Curve(**asdict(curve))` is the curve.

    Attributes:
        steps: optimizer steps done at each point, from 0.
        train_loss: cross-entropy on as many training images as there are validation images, at each point.
        val_loss: cross-entropy on the validation images, at each point.
        final: scores at the end by split ("train", "val", "test"), each {"loss", "accuracy"}; empty if
            the training diverged.
        diverged_at: the step of the first point at which a loss was not finite; None if that never was.
    """

    steps: list[int] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    final: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    diverged_at: int | None = None


def batch_indices(step: int, *, images: int, batch_size: int, seed: int) -> Int[Tensor, " batch"]:
    """Return the indices of the images of one step, a function of its arguments alone.

    Each epoch is a permutation of its own; the images that do not fill a last batch are left out of it.
    """
    batch_size = min(batch_size, images)
    epoch, position = divmod(step, images // batch_size)
    order = _epoch_order(images, seed, epoch)
    return order[position * batch_size : (position + 1) * batch_size]


@lru_cache(maxsize=2)
def _epoch_order(images: int, seed: int, epoch: int) -> Int[Tensor, " images"]:
    return torch.randperm(images, generator=torch.Generator().manual_seed(_mixed(seed, epoch)))


def _mixed(seed: int, counter: int) -> int:
    return (seed * 0x9E3779B97F4A7C15 + counter * 0xBF58476D1CE4E5B9 + 1) % 2**63


def train(
    model: nn.Module,
    data: ImageData,
    optimization: Optimization,
    config: TrainingConfig,
    *,
    state_file: Path | None = None,
    progress: ProgressCallback = silent,
    task: str = "train",
) -> Curve:
    """Train `model` in place by cross-entropy and return its curve.

    Two calls with equal arguments give equal curves on one machine, whether or not either of them was
    stopped and begun again from its `state_file`. The global random state is left as it was.

    Args:
        model: freshly made, on the device where `data` are wanted.
        data: the data set.
        optimization: optimizer over the model's parameters, with its schedule.
        config: steps, batch, seed.
        state_file: where the unfinished state is kept; if it exists the training goes on from there.
        progress: hears of every point of the curve.
        task: the training's name in progress records.

    Raises:
        CheckpointError: the state file is damaged.
    """
    device = next(model.parameters()).device
    splits = {name: getattr(data, name).to(device) for name in ("train", "val", "test")}
    step, curve = 0, Curve()
    if state_file is not None and state_file.is_file():
        step, curve = _restore(load_state(state_file), model, optimization)
    saved = time.monotonic()
    model.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        while step < config.total_steps:
            if step % config.evaluate_every == 0 and step not in curve.steps[-1:]:
                with optimization.evaluating(model, splits["train"].images):
                    curve = _with_point(curve, step, model, splits)
                if curve.diverged_at is not None:
                    break
                progress(Progress(task, step, config.total_steps, _note(curve)))
            if state_file is not None and time.monotonic() - saved >= config.save_every_s:
                save_state(state_file, _snapshot(step, curve, model, optimization))
                saved = time.monotonic()
            _take_step(step, model, splits["train"], optimization, config)
            step += 1
        else:
            with optimization.evaluating(model, splits["train"].images):
                curve = _at_the_end(curve, step, model, splits)
    progress(Progress(task, config.total_steps, config.total_steps, _note(curve)))
    return curve


def _take_step(
    step: int, model: nn.Module, split: Split, optimization: Optimization, config: TrainingConfig
) -> None:
    torch.manual_seed(_mixed(config.seed, step))
    index = batch_indices(step, images=len(split), batch_size=config.batch_size, seed=config.seed)
    batch = split[index.to(split.labels.device)]
    loss = functional.cross_entropy(model(batch.images), batch.labels)
    optimization.optimizer.zero_grad()
    loss.backward()
    optimization.optimizer.step()
    if optimization.scheduler is not None:
        optimization.scheduler.step()


def _with_point(curve: Curve, step: int, model: nn.Module, splits: Mapping[str, Split]) -> Curve:
    """Return the curve with the losses at `step`, or marked as diverged if one of them is not finite."""
    train, val = splits["train"], splits["val"]
    count = len(val)
    losses = [evaluate(model, s.images[:count], s.labels[:count]).loss for s in (train, val)]
    if not all(math.isfinite(loss) for loss in losses):
        return Curve(curve.steps, curve.train_loss, curve.val_loss, diverged_at=step)
    return Curve([*curve.steps, step], [*curve.train_loss, losses[0]], [*curve.val_loss, losses[1]])


def _at_the_end(curve: Curve, step: int, model: nn.Module, splits: Mapping[str, Split]) -> Curve:
    curve = _with_point(curve, step, model, splits)
    if curve.diverged_at is not None:
        return curve
    scores = {name: evaluate(model, split.images, split.labels) for name, split in splits.items()}
    return _finished(curve, step, scores)


def _finished(curve: Curve, step: int, scores: Mapping[str, Scores]) -> Curve:
    if not all(math.isfinite(score.loss) for score in scores.values()):
        return Curve(curve.steps, curve.train_loss, curve.val_loss, diverged_at=step)
    final = {name: asdict(score) for name, score in scores.items()}
    return Curve(curve.steps, curve.train_loss, curve.val_loss, final)


def _note(curve: Curve) -> str:
    if curve.diverged_at is not None:
        return "diverged"
    return f"val loss {curve.val_loss[-1]:.3f}"


def _snapshot(step: int, curve: Curve, model: nn.Module, optimization: Optimization) -> dict[str, Any]:
    scheduler = optimization.scheduler
    return {
        "step": step,
        "curve": asdict(curve),
        "model": dict(model.state_dict()),
        "optimizer": optimization.optimizer.state_dict(),
        "scheduler": None if scheduler is None else scheduler.state_dict(),
    }


def _restore(state: Mapping[str, Any], model: nn.Module, optimization: Optimization) -> tuple[int, Curve]:
    model.load_state_dict(state["model"])
    optimization.optimizer.load_state_dict(state["optimizer"])
    if optimization.scheduler is not None:
        optimization.scheduler.load_state_dict(state["scheduler"])
    return state["step"], Curve(**state["curve"])
