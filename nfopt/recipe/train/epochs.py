"""Training a classifier over epochs under accelerate, in one process or many, resumable to the bit."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torch.utils.data import Sampler

from nfopt.atomic import replacing
from nfopt.progress import Progress, ProgressCallback
from nfopt.recipe.processes import from_first, is_first, process_count, wait_for_all
from nfopt.recipe.scoring import evaluated, image_loader
from nfopt.recipe.train.images import Images, ImageSets, Key
from nfopt.seeds import derive_seed
from nfopt.statefile import load_state, save_state
from nfopt.training import Optimization, batch_indices

BEST, LAST = "best.safetensors", "last.safetensors"
STATISTICS_IMAGES = 256


@dataclass(frozen=True)
class EpochConfig:
    """Settings of one training.

    Attributes:
        epochs: passes over the training images; those that do not fill a last batch are left out of each.
        batch_size: images per optimizer step, over all processes and accumulated parts.
        accumulate: parts that a process's share of a batch is computed in.
        max_grad_norm: gradients are scaled down to this norm; None for no clipping.
        label_smoothing: share in [0, 1) of the target's weight spread over all classes.
        seed: of the order of the images and of everything random inside the model.
        workers: processes that read images ahead; 0: the training process reads them itself.
        save_every: optimizer steps between saves of the unfinished state; it does not change any number.
    """

    epochs: int
    batch_size: int
    accumulate: int = 1
    max_grad_norm: float | None = None
    label_smoothing: float = 0.0
    seed: int = 0
    workers: int = 0
    save_every: int = 200


@dataclass(frozen=True)
class Standing:
    """How far a training is. JSON values throughout.

    Attributes:
        step: optimizer steps done.
        loss_sum: sum of the losses of this epoch's steps, where the state is saved; 0 elsewhere.
        epochs: a record per finished epoch: epoch, step, train_loss, val_loss, val_accuracy, lr.
        best_epoch: epoch of the highest validation accuracy, the first of equals; 0: none yet.
        diverged: whether the training ended because a loss was not finite.
    """

    step: int = 0
    loss_sum: float = 0.0
    epochs: tuple[dict[str, float], ...] = ()
    best_epoch: int = 0
    diverged: bool = False


class Shares(Sampler[list[Key]]):
    """The parts of the steps' batches that fall to process `rank` of `processes`, as keys of images."""

    def __init__(self, config: EpochConfig, images: int, steps: range, rank: int, processes: int) -> None:
        self._config, self._images, self._steps = config, images, steps
        self._rank, self._processes = rank, processes

    def __len__(self) -> int:
        return len(self._steps) * self._config.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        c = self._config
        for step in self._steps:
            index = batch_indices(step, images=self._images, batch_size=c.batch_size, seed=c.seed)
            for part in index[self._rank :: self._processes].chunk(c.accumulate):
                yield [(number, step) for number in part.tolist()]


def train_epochs(
    model: nn.Module,
    sets: ImageSets,
    optimization: Optimization,
    config: EpochConfig,
    accelerator: Accelerator,
    *,
    state_file: Path,
    folder: Path,
    progress: ProgressCallback,
) -> Standing:
    """Train `model` in place by cross-entropy; the best and the last weights go to `folder`.

    On CPUs, a training that is stopped at any moment and called again ends with the same bits.

    Args:
        model: freshly made, on the accelerator's device.
        sets: the images.
        optimization: over the model's parameters, not yet prepared.
        config: epochs, batch and so on; `batch_size` is a multiple of processes times `accumulate`.
        accelerator: with the precision and `accumulate` of the training.
        state_file: where the unfinished state is kept; if it exists the training goes on from there.
        folder: for best.safetensors and last.safetensors.
        progress: hears of every step.
    """
    prepared, optimizer = accelerator.prepare(model, optimization.optimizer)
    training = _Training(prepared, optimizer, optimization, sets, config, accelerator)
    standing = Standing()
    if from_first(state_file.is_file):
        standing = training.restore(load_state(state_file))
    steps = len(sets.train) // config.batch_size
    total = config.epochs * steps

    def report(now: Standing) -> None:
        progress(Progress("train", now.step, total, _note(now, config.epochs, steps)))

    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        while standing.step < total and not standing.diverged:
            end = (standing.step // steps + 1) * steps
            for step in training.steps(standing.step, end):
                standing = replace(standing, step=step)
                report(standing)
                if step % config.save_every == 0 and step < end:
                    training.save(state_file, replace(standing, loss_sum=training.loss_sum()))
            standing = training.closed_epoch(standing, steps, folder)
            training.save(state_file, standing)
    report(standing)
    return standing


def _note(now: Standing, epochs: int, steps: int) -> str:
    where = f"epoch {min(now.step // steps + 1, epochs)}/{epochs}"
    if now.diverged:
        return f"{where}, diverged"
    if not now.epochs:
        return where
    last = now.epochs[-1]
    return f"{where}, val loss {last['val_loss']:.3f}, val acc. {100 * last['val_accuracy']:.1f} %"


class _Training:
    """The parts of one training that hold state."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        optimization: Optimization,
        sets: ImageSets,
        config: EpochConfig,
        accelerator: Accelerator,
    ) -> None:
        self._model, self._optimizer, self._scheduler = model, optimizer, optimization.scheduler
        self._optimization = optimization
        self._sets, self._config, self._accelerator = sets, config, accelerator
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=accelerator.device)

    def loss_sum(self) -> float:
        """Return the sum of the losses of this epoch's steps so far, which waits for the device."""
        reduced: Any = self._accelerator.reduce(self._loss_sum.clone(), reduction="mean")
        return float(reduced)

    def steps(self, first: int, last: int) -> Iterator[int]:
        """Take the optimizer steps from `first` to `last`, yielding how many are done after each."""
        c, accelerator = self._config, self._accelerator
        rank, processes = accelerator.process_index, accelerator.num_processes
        sampler = Shares(c, len(self._sets.train), range(first, last), rank, processes)
        loader = image_loader(self._sets.train, sampler, c.workers)
        self._model.train()
        for part, (images, labels) in enumerate(loader):
            step, part_of_step = first + part // c.accumulate, part % c.accumulate
            torch.manual_seed(derive_seed(c.seed, "step", step, part_of_step, rank))
            images, labels = images.to(accelerator.device), labels.to(accelerator.device)
            with accelerator.accumulate(self._model):
                logits = self._model(images)
                loss = functional.cross_entropy(logits.float(), labels, label_smoothing=c.label_smoothing)
                accelerator.backward(loss)
                self._loss_sum += loss.detach().double() / c.accumulate
                if accelerator.sync_gradients and c.max_grad_norm is not None:
                    accelerator.clip_grad_norm_(self._model.parameters(), c.max_grad_norm)
                self._optimizer.step()
                self._optimizer.zero_grad()
            if part_of_step == c.accumulate - 1:
                if self._scheduler is not None and not self._optimizer.step_was_skipped:
                    self._scheduler.step()
                yield step + 1

    def closed_epoch(self, standing: Standing, steps: int, folder: Path) -> Standing:
        """Evaluate, keep the last weights and, if they are, the best ones."""
        with self._as_evaluated():
            return self._closed_epoch(standing, steps, folder)

    def _as_evaluated(self) -> AbstractContextManager[None]:
        """Within it the model is what the optimizer answers with, such as an average of what it trains."""
        keys = [(number, 0) for number in range(min(STATISTICS_IMAGES, len(self._sets.train)))]
        images = self._sets.train.__getitems__(keys)[0].to(self._accelerator.device)
        return self._optimization.evaluating(self._accelerator.unwrap_model(self._model), images)

    def _closed_epoch(self, standing: Standing, steps: int, folder: Path) -> Standing:
        val_loss, val_accuracy = self.evaluate(self._sets.val)
        train_loss = self.loss_sum() / steps
        self._loss_sum.zero_()
        if not (math.isfinite(val_loss) and math.isfinite(train_loss)):
            return replace(standing, diverged=True)
        epoch = standing.step // steps
        record = {
            "epoch": epoch,
            "step": standing.step,
            "train_loss": train_loss,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "lr": float(self._optimizer.param_groups[0]["lr"]),
        }
        highest = max((known["val_accuracy"] for known in standing.epochs), default=-1.0)
        best = epoch if val_accuracy > highest else standing.best_epoch
        if is_first():
            self._write_weights(folder / LAST, record)
            if best == epoch:
                self._write_weights(folder / BEST, record)
        return replace(standing, epochs=(*standing.epochs, record), best_epoch=best)

    def evaluate(self, images: Images) -> tuple[float, float]:
        """Return mean cross-entropy and accuracy over all processes' shares of `images`."""
        module = self._accelerator.unwrap_model(self._model)
        if process_count() > 1:
            for (
                buffer
            ) in module.buffers():  # running statistics are each process's own; the first one's count
                torch.distributed.broadcast(buffer, 0)
        return evaluated(module, images, self._sets.classes, self._accelerator, self._config.workers)

    def save(self, file: Path, standing: Standing) -> None:
        """Keep everything that a later process needs to go on."""
        scaler = self._accelerator.scaler
        if is_first():
            state = {
                "standing": asdict(standing) | {"epochs": list(standing.epochs)},
                "model": dict(self._accelerator.unwrap_model(self._model).state_dict()),
                "optimizer": self._optimizer.state_dict(),
                "scheduler": None if self._scheduler is None else self._scheduler.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
            }
            save_state(file, state)
        wait_for_all()

    def restore(self, state: dict[str, Any]) -> Standing:
        """Go back to a saved state."""
        self._accelerator.unwrap_model(self._model).load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state["scheduler"])
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        standing = state["standing"]
        self._loss_sum.fill_(standing["loss_sum"])
        return Standing(**standing | {"epochs": tuple(standing["epochs"]), "loss_sum": 0.0})

    def _write_weights(self, file: Path, record: dict[str, float]) -> None:
        state = self._accelerator.unwrap_model(self._model).state_dict()
        # Cloned, since tied tensors share memory, which safetensors refuses.
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
        metadata = {key: str(value) for key, value in record.items()}
        with replacing(file) as partial:
            save_file(tensors, partial, metadata=metadata | {"classes": "\n".join(self._sets.class_names)})
