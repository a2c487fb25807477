"""Fitting: the one trainer of every reader, so that the methods of a table differ in nothing else."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nfopt.experiments.question import ExperimentError, Tensors
from nfopt.experiments.tasks.task import Task
from nfopt.progress import Progress, ProgressCallback, silent
from nfopt.statefile import load_state, save_state
from nfopt.training import batch_indices
from nfopt.zoo import Zoo

Augment = Callable[[Tensors, torch.Generator], Tensors]
WARMUP = 0.2


@dataclass(frozen=True)
class FitConfig:
    """Settings that every method of a table shares, but for the learning rate, which is chosen from a grid.

    Attributes:
        total_steps: optimizer steps.
        batch_size: nets per step, drawn without replacement within an epoch.
        lr: learning rate of AdamW; the highest of a "one_cycle" schedule.
        schedule: "one_cycle" rises linearly over a fifth of the steps and falls to 0 as a cosine.
        weight_decay: of AdamW.
        clip: the gradient's norm is scaled down to this; 0 leaves it alone.
        evaluations: how often the validation side is looked at, at even distances, the last time at the end.
        seed: of batches and augmentation; the network's initial weights are drawn before.
        save_every_s: seconds between saves of the unfinished state; it changes no number.

    Raises:
        ExperimentError: a number makes no sense.
    """

    total_steps: int
    batch_size: int = 64
    lr: float = 5e-3
    schedule: Literal["one_cycle", "constant"] = "one_cycle"
    weight_decay: float = 5e-4
    clip: float = 1.0
    evaluations: int = 10
    seed: int = 0
    save_every_s: float = 10.0

    def __post_init__(self) -> None:
        if min(self.total_steps, self.batch_size, self.evaluations) < 1:
            raise ExperimentError("total_steps, batch_size and evaluations must be 1 or more.")
        if not (self.lr > 0 and self.weight_decay >= 0 and self.clip >= 0):
            raise ExperimentError("lr must be above 0, weight_decay and clip 0 or more.")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if self.schedule == "constant":
            return self.lr
        rise = max(1, round(WARMUP * self.total_steps))
        if step < rise:
            return self.lr * (step + 1) / rise
        return self.lr * (1 + math.cos(math.pi * (step - rise) / max(1, self.total_steps - rise))) / 2

    def is_looked_at(self, done: int) -> bool:
        """Return whether the validation side is looked at after so many steps."""
        every = self.total_steps / self.evaluations
        return int(done / every) > int((done - 1) / every) or done == self.total_steps


@dataclass(frozen=True)
class Fit:
    """What one fit came to. JSON values throughout.

    Attributes:
        steps: optimizer steps at each look at the validation side.
        validation: its metric at each look.
        best_step: the look that was chosen: the best on the validation side.
        scores: at that point, by side ("val", "test").
        seconds: time of the steps and looks.
        diverged_at: the step at which the loss was not finite; the fit ends there. None if it never was.
    """

    steps: list[int] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best_step: int | None = None
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0
    diverged_at: int | None = None

    def score(self, side: str, metric: str) -> float | None:
        """Return a score of the chosen point; None if there is none, since the fit diverged at once."""
        return self.scores.get(side, {}).get(metric)


def fit(
    network: nn.Module,
    task: Task,
    zoo: Zoo,
    targets: Mapping[str, Tensor],
    config: FitConfig,
    *,
    augment: Augment | None = None,
    state_file: Path | None = None,
    progress: ProgressCallback = silent,
    name: str = "fit",
) -> Fit:
    """Train a reader on the train side, choose its best point on the validation side, and score that.

    The network, which is trained in place, ends with the weights of the chosen point. The test side is read
    once, at that point. Inputs are standardised by the train side, augmented if the training is.

    Args:
        network: a reader's network, on the zoo's device.
        task: what it learns.
        zoo: the nets of all three sides.
        targets: `task.targets(zoo)`.
        config: the settings.
        augment: changes the nets of each batch, with the generator that it is given; None for nothing.
        state_file: where the unfinished state is kept; if there is one, it is continued, to the bit on CPUs.
        progress: hears of the steps.
        name: how progress calls the work.

    Raises:
        ExperimentError: the train or the validation side has no net.
        CheckpointError: the state file is damaged.
    """
    train = (zoo.side == 0).nonzero().flatten()
    if not len(train) or not bool((zoo.side == 1).any()):
        raise ExperimentError(
            f"{len(train)} nets of the zoo are for training and {int((zoo.side == 1).sum())} for validation; "
            "there must be some of both."
        )
    nets = {key: tensor[train] for key, tensor in zoo.tensors.items()}
    wanted = {key: value[train] for key, value in targets.items()}
    network.fit_statistics(nets if augment is None else augment(nets, _draws(config.seed, -1)))  # pyright: ignore[reportCallIssue]
    run = _Run(network, task, zoo, targets, config)
    if state_file is not None and state_file.exists():
        run.load(load_state(state_file))
    saved = time.monotonic()
    while run.done < config.total_steps and run.diverged_at is None:
        index = batch_indices(run.done, images=len(train), batch_size=config.batch_size, seed=config.seed).to(
            train.device
        )
        draws = _draws(config.seed, run.done)
        batch: Tensors = {key: tensor[index] for key, tensor in nets.items()}
        if augment is not None:
            batch = augment(batch, draws)
        run.step(batch, {key: value[index] for key, value in wanted.items()}, draws)
        if state_file is not None and time.monotonic() - saved > config.save_every_s:
            save_state(state_file, run.state())
            saved = time.monotonic()
        note = f"{task.metric} {run.validation[-1]:.4g}" if run.validation else ""
        progress(Progress(name, run.done, config.total_steps, note))
    return run.finished()


def _draws(seed: int, step: int) -> torch.Generator:
    """Return the source of a step's random numbers, a function of seed and step alone."""
    mixed = (seed * 0x9E3779B97F4A7C15 + (step + 2) * 0xD6E8FEB86659FD93) % 2**63
    return torch.Generator().manual_seed(mixed)


class _Run:
    """An unfinished fit."""

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        zoo: Zoo,
        targets: Mapping[str, Tensor],
        config: FitConfig,
    ) -> None:
        self.network, self.task, self.zoo, self.targets, self.config = network, task, zoo, targets, config
        self.optimizer = torch.optim.AdamW(
            [p for p in network.parameters() if p.requires_grad], weight_decay=config.weight_decay
        )
        self.done, self.seconds = 0, 0.0
        self.steps: list[int] = []
        self.validation: list[float] = []
        self.best: dict[str, Any] | None = None
        self.best_step: int | None = None
        self.diverged_at: int | None = None

    def step(self, batch: Tensors, targets: Mapping[str, Tensor], draws: torch.Generator) -> None:
        begun = time.perf_counter()
        config = self.config
        self.network.train()
        for group in self.optimizer.param_groups:
            group["lr"] = config.rate(self.done)
        loss = self.task.loss(self.network, batch, targets, draws)
        self.optimizer.zero_grad()
        loss.backward()
        limit = config.clip or math.inf
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), limit)
        if not bool(torch.isfinite(loss.detach()) & torch.isfinite(norm)):
            self.diverged_at = self.done
            return
        self.optimizer.step()
        self.done += 1
        if config.is_looked_at(self.done):
            self._look()
        self.seconds += time.perf_counter() - begun

    def _look(self) -> None:
        value = self._scores("val")[self.task.metric]
        if not math.isfinite(value):
            self.diverged_at = self.done
            return
        better = not self.validation or (
            value > max(self.validation) if self.task.higher_is_better else value < min(self.validation)
        )
        self.steps.append(self.done)
        self.validation.append(value)
        if better:
            self.best, self.best_step = _copied(self.network), self.done

    def _scores(self, side: str) -> dict[str, float]:
        self.network.eval()
        with torch.no_grad():
            return self.task.scores(self.network, self.zoo, self.targets, side)

    def finished(self) -> Fit:
        scores: dict[str, dict[str, float]] = {}
        if self.best is not None:
            self.network.load_state_dict(self.best)
            for side in ("val", "test"):
                if self._has(side):
                    found = self._scores(side)
                    # What is not finite is no score: it would be no JSON either.
                    scores[side] = {name: value for name, value in found.items() if math.isfinite(value)}
        return Fit(self.steps, self.validation, self.best_step, scores, self.seconds, self.diverged_at)

    def _has(self, side: str) -> bool:
        return bool((self.zoo.side == ("train", "val", "test").index(side)).any())

    def state(self) -> dict[str, Any]:
        return {
            "config": asdict(self.config),
            "network": dict(self.network.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "best_step": self.best_step,
            "done": self.done,
            "seconds": self.seconds,
            "steps": self.steps,
            "validation": self.validation,
        }

    def load(self, state: dict[str, Any]) -> None:
        if {**state["config"], "save_every_s": 0} != {**asdict(self.config), "save_every_s": 0}:
            raise ExperimentError("the unfinished fit was begun with other settings. Delete its state file.")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.best_step, self.done = state["best"], state["best_step"], state["done"]
        self.seconds, self.steps, self.validation = state["seconds"], state["steps"], state["validation"]


def _copied(network: nn.Module) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
