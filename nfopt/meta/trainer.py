"""MetaTrainer: the outer loop that learns theta, with checkpoints from which it resumes to the bit."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nfopt.errors import NfoptError
from nfopt.meta.outer import OuterConfig, OuterOptimizer
from nfopt.meta.selection import Selection
from nfopt.meta.slot import Slot, SlotSettings
from nfopt.meta.store import drop_lines_after, load_latest, save_checkpoint, save_theta
from nfopt.meta.workers import OneProcess, Workers
from nfopt.progress import Progress, ProgressCallback, silent


@dataclass(frozen=True, slots=True)
class TrainerConfig:
    """Settings of the outer loop.

    Attributes:
        outer: the outer optimizer.
        slots: tasks per outer step.
        checkpoint_every: outer steps between checkpoints.
        select_every: outer steps between trials of the Polyak average on the selection tasks.
        shrink: what the average's output layers are multiplied by in those trials, one after the other: 1 is
            the average itself, and less lies between it and the nominal point. Meta-training on short
            trainings overshoots on longer ones.
    """

    outer: OuterConfig = field(default_factory=OuterConfig)
    slots: int = 6
    checkpoint_every: int = 20
    select_every: int = 50
    shrink: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if min(self.slots, self.checkpoint_every, self.select_every) < 1:
            raise NfoptError(f"slots, checkpoint_every and select_every must be >= 1, not {self}.")
        if not self.shrink or not all(0 < share <= 1 for share in self.shrink):
            raise NfoptError(f"shrink has shares above 0 and at most 1, not {self.shrink}.")


@dataclass(frozen=True, eq=False)
class MetaTrained:
    """What a meta-training hands over.

    Attributes:
        theta: the chosen weights by name; the nominal point when nothing beat it.
        gain: their meta-loss on the selection tasks minus the nominal rule's: below 0 is better.
        outer_step: when they were met; 0 for the nominal point.
        shrink: what their output layers were multiplied by.
        outer_steps: outer steps in all.
        failures: copies with a non-finite loss, over the whole meta-training.
        inner_steps: inner steps taken, over copies.
    """

    theta: dict[str, Tensor]
    gain: float
    outer_step: int
    shrink: float
    outer_steps: int
    failures: int
    inner_steps: int


@dataclass
class _Ledger:
    """The plain numbers of a meta-training that a checkpoint holds."""

    step: int = 0
    failures: int = 0
    inner_steps: int = 0
    best_step: int = 0
    best_gain: float = 0.0
    best_shrink: float = 1.0


class MetaTrainer:
    """Learns theta by outer steps over slots of inner trainings.

    Args:
        settings: what the slots have in common.
        config: the outer loop's settings.
        folder: where `log.jsonl` and `best.safetensors` go.
        state: where the checkpoints go (default: `folder`).
        selection: trainings to choose the Polyak average by; None keeps the last one.
        start: theta before the first step (meta-parameters,); None is the nominal point.
        learned: (meta-parameters,), False where theta stays as it starts; None learns all of it.
        workers: the processes that share the work.
        progress: told after every outer step.
    """

    def __init__(
        self,
        settings: SlotSettings,
        config: TrainerConfig,
        folder: Path,
        *,
        state: Path | None = None,
        selection: Selection | None = None,
        start: Tensor | None = None,
        learned: Tensor | None = None,
        workers: Workers | None = None,
        progress: ProgressCallback = silent,
    ) -> None:
        self.settings = settings
        self.config = config
        self.folder = folder
        self.state = state or folder
        self.selection = selection
        self.workers = workers or OneProcess()
        self.progress = progress
        nominal = settings.nominal
        start = nominal if start is None else start
        self.outer = OuterOptimizer(config.outer, start, settings.layout.zero_tensors(nominal), learned)
        self._ledger = _Ledger()
        self._slots: dict[int, Slot] = {}
        self._best = nominal.clone()
        self._reference: Tensor | None = None
        self._seconds, self._timed = 0.0, 0

    def run(self, *, stop_after: int | None = None) -> MetaTrained:
        """Meta-train from the last checkpoint in `folder`, or from the start, to the end.

        Args:
            stop_after: stop, with a checkpoint, once that many outer steps are done.

        Raises:
            NfoptError: the folder's checkpoint belongs to other settings or is damaged.
        """
        self._resume()
        total = self.config.outer.outer_steps
        end = total if stop_after is None else min(stop_after, total)
        while self._ledger.step < end:
            record = self._outer_step()
            step = self._ledger.step
            if self.selection is not None and (step % self.config.select_every == 0 or step == total):
                record |= self._select(self.selection)
            if self.workers.rank == 0:
                with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
                    log.write(json.dumps(record) + "\n")
            self.progress(Progress("meta-train", step, total, f"{_note(record)}, {self._time_left(record)}"))
            if step % self.config.checkpoint_every == 0 or step == end:
                self._save()
        return self._result()

    def _time_left(self, record: Mapping[str, Any]) -> str:
        """Return how long the rest may take, by the outer steps of this run so far."""
        self._seconds += record["seconds"]
        self._timed += 1
        seconds = self._seconds / self._timed * (self.config.outer.outer_steps - self._ledger.step)
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"

    def _outer_step(self) -> dict[str, Any]:
        started = time.perf_counter()
        shared = self.settings
        length = len(shared.nominal)
        gradients = torch.zeros(self.config.slots, shared.instances, length, dtype=shared.nominal.dtype)
        # Columns: mean loss, gain, whether there is a gain, failures, inner steps, whether all copies failed.
        numbers = torch.zeros(self.config.slots, 6, dtype=torch.float64)
        for index, slot in self._slots.items():
            report = slot.advance(self.outer.theta)
            estimate = report.estimate
            gradients[index] = estimate.gradients
            gain = report.gain
            loss = float(estimate.losses.mean())
            row = (
                loss,
                gain or 0.0,
                gain is not None,
                estimate.failures,
                estimate.inner_steps,
                estimate.void,
            )
            numbers[index] = torch.tensor(row, dtype=torch.float64)
        gradients, numbers = self.workers.total(gradients), self.workers.total(numbers)
        gradients = gradients[numbers[:, 5] == 0]
        # With no gradient at all, theta stays: Adam would still move it.
        norm = self.outer.step(gradients.mean((0, 1)), self._ledger.step) if len(gradients) else 0.0
        ledger = self._ledger
        ledger.step += 1
        ledger.failures += int(numbers[:, 3].sum())
        ledger.inner_steps += int(numbers[:, 4].sum())
        gains = int(numbers[:, 2].sum())
        seconds = time.perf_counter() - started
        return {
            "outer_step": ledger.step,
            "meta_loss": float(numbers[:, 0].mean()),
            "gain_over_nominal": float(numbers[:, 1].sum()) / gains if gains else None,
            "gradient_norm": norm,
            "half_cosine": half_cosine(gradients),
            "task_cosine": half_cosine(gradients.transpose(0, 1)),
            "failures": int(numbers[:, 3].sum()),
            "skipped_slots": int(numbers[:, 5].sum()),
            "theta_norm": float((self.outer.theta - shared.nominal).norm()),
            "learning_rate": self.config.outer.rate(ledger.step - 1),
            "inner_steps_per_second": float(numbers[:, 4].sum()) / seconds,
            "seconds": seconds,
        }

    def _select(self, selection: Selection) -> dict[str, Any]:
        if self._reference is None:
            self._reference = selection.losses([self.settings.nominal], self.workers)[0]
        outputs = self.settings.layout.zero_tensors(self.settings.nominal)
        average = self.outer.average
        tried = [torch.where(outputs, share * average, average) for share in self.config.shrink]
        every = selection.losses(tried, self.workers) - self._reference
        index = int(every.mean(1).argmin())
        gains, share = every[index], self.config.shrink[index]
        gain = float(gains.mean())
        if gain < self._ledger.best_gain:
            self._ledger.best_gain, self._ledger.best_step = gain, self._ledger.step
            self._ledger.best_shrink = share
            self._best = tried[index].clone()
            if self.workers.rank == 0:
                named = self.settings.layout.unflatten(self._best)
                facts = {"outer_step": self._ledger.step, "gain": gain, "shrink": share}
                save_theta(self.folder, named, facts)
        error = float(gains.std() / len(gains) ** 0.5) if len(gains) > 1 else None
        return {
            "selection_gain": gain,
            "selection_error": error,
            "selection_gains": gains.tolist(),
            "selection_shrink": share,
        }

    def _result(self) -> MetaTrained:
        ledger = self._ledger
        chosen = self._best if self.selection is not None else self.outer.average
        return MetaTrained(
            theta=self.settings.layout.unflatten(chosen.clone()),
            gain=ledger.best_gain if self.selection is not None else float("nan"),
            outer_step=ledger.best_step if self.selection is not None else ledger.step,
            shrink=ledger.best_shrink,
            outer_steps=ledger.step,
            failures=ledger.failures,
            inner_steps=ledger.inner_steps,
        )

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must have been made with, so that going on from it makes sense."""
        shared = self.settings
        parts = {
            "family": asdict(shared.family),
            "estimator": repr(shared.estimator),
            "objective": asdict(shared.objective),
            "layout": shared.layout.shapes,
            "instances": shared.instances,
            "reference_share": shared.reference_share,
            "seed": shared.seed,
            "slots": self.config.slots,
            "outer": asdict(self.config.outer),
            "weights that are not learned": (~self.outer.learned).nonzero()[:, 0].tolist(),
        }
        return json.loads(json.dumps(parts))

    def _save(self) -> None:
        extra = {"best": self._best}
        if self._reference is not None:
            extra["reference"] = self._reference
        save_checkpoint(
            self.state,
            self._ledger.step,
            outer=self.outer.tensors() | extra,
            slots={index: (slot.counters(), slot.tensors()) for index, slot in self._slots.items()},
            numbers={"ledger": asdict(self._ledger), "identity": self._identity()},
            workers=self.workers,
        )

    def _resume(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.state.mkdir(parents=True, exist_ok=True)
        mine = range(self.workers.rank, self.config.slots, self.workers.count)
        found = load_latest(self.state, mine)
        if found is None:
            self._slots = {index: Slot(self.settings, index) for index in mine}
        else:
            known, given = found.numbers["identity"], self._identity()
            other = sorted(key for key in given if known.get(key) != given[key])
            if other:
                raise NfoptError(
                    f"{self.state} holds a meta-training with another {', '.join(other)}. "
                    "Use the settings it was started with, or another folder."
                )
            self._ledger = _Ledger(**found.numbers["ledger"])
            self.outer.load(found.outer)
            self._best = found.outer["best"]
            self._reference = found.outer.get("reference")
            self._slots = {
                index: Slot(self.settings, index, tensors=tensors, **counters)
                for index, (counters, tensors) in found.slots.items()
            }
        if self.workers.rank == 0:
            drop_lines_after(self.folder / "log.jsonl", self._ledger.step)
        self.workers.wait()


def half_cosine(gradients: Tensor) -> float | None:
    """Return the cosine between the mean gradients of even and of odd instances: how much is signal.

    With slots and instances exchanged it also holds the noise of drawing tasks.

    Args:
        gradients: (slots, instances, meta-parameters); None is returned for fewer than two
            instances, or no slot.
    """
    if gradients.shape[1] < 2 or not len(gradients):
        return None
    even, odd = gradients[:, ::2].mean((0, 1)), gradients[:, 1::2].mean((0, 1))
    return float(torch.nn.functional.cosine_similarity(even, odd, dim=0))


def _note(record: Mapping[str, Any]) -> str:
    gain = record["gain_over_nominal"]
    against = "" if gain is None else f", {gain:+.3f} against nominal"
    return f"meta-loss {record['meta_loss']:.3f}{against}, |g| {record['gradient_norm']:.2g}"
