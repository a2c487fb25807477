"""Contestants: a direction in the shell that all share, or a reference optimizer; and one training of either.

The shell does for every direction d of a matrix W the same, with the multiplier k as the only tuned number:

    W <- W - k (1 - t/T) (s / sqrt(fan-in) d / RMS(d) + .0025 W),   s = .025, for kernels .06

and moves every other tensor by Adam at a fixed step of .01, with the same momentum.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nfopt.meta.baselines import AdamWRule, MuonRule
from nfopt.optim.directions import adam, unit_rms
from tests.benchmarks.direction_rules import Direction, LayerSignals, average, state_tensors
from tests.benchmarks.direction_tasks import CURVE_IMAGES, TRAIN_IMAGES, Problem, Recorder, Tensors, losses

SLOW, FAST, SECOND = 0.95, 0.8, 0.99
VECTOR_STEP, DECAY = 0.01, 0.0025
CURVE_EVERY = 10


@dataclass(frozen=True)
class Averaging:
    """Primal averaging (Defazio et al. 2024): gradients at y = (1 - at) x + at z, z moves, x averages the z.

    Attributes:
        at: share of z in the point of the gradients.
        power: x weighs z_t by t^power.
        decay: whether the step decays linearly; else it stays.
    """

    at: float
    power: float
    decay: bool


@dataclass(frozen=True)
class Contestant:
    """A direction in the shell.

    Attributes:
        name: in the table.
        direction: makes the direction of one tensor.
        fast_share: share of the fast momentum (rate .8) in the Nesterov mix with the slow one (.95); None for
            plain momentum of rate .95.
        own_step: above 0, matrices move by k own_step d at d's own scale, instead of RMS 1 and fan-in.
        averaging: how iterates are averaged; None for not at all.
        signals: whether the direction reads the layers' signals.
    """

    name: str
    direction: Callable[[], Direction]
    fast_share: float | None = 0.5
    own_step: float = 0.0
    averaging: Averaging | None = None
    signals: bool = False

    def start(self, problem: Problem, multiplier: float) -> "Shell":
        """Return the optimizer before its first step."""
        return Shell(self, problem, multiplier)

    def setting(self, multiplier: float) -> str:
        """Return the tuned number for the table."""
        return f"lr {multiplier * self.own_step:.2g}" if self.own_step else f"x {multiplier:.2g}"


@dataclass(frozen=True)
class Reference:
    """A whole optimizer, with 2 % warm-up and linear decay; the multiplier scales its learning rate."""

    name: str
    rule: AdamWRule | MuonRule
    learning_rate: float
    weight_decay: float
    momentum: float
    signals: bool = False

    def start(self, problem: Problem, multiplier: float) -> "ReferenceRun":
        """Return the optimizer before its first step."""
        return ReferenceRun(self, problem, multiplier)

    def setting(self, multiplier: float) -> str:
        """Return the tuned number for the table."""
        return f"lr {multiplier * self.learning_rate:.2g}"


@dataclass
class Shell:
    """A contestant at work; see the top of the file."""

    contestant: Contestant
    problem: Problem
    multiplier: float
    slow: Tensors = field(default_factory=dict)
    fast: Tensors = field(default_factory=dict)
    second: Tensors = field(default_factory=dict)
    directions: dict[str, Direction] = field(default_factory=dict)
    average: Tensors = field(default_factory=dict)
    moving: Tensors = field(default_factory=dict)

    def update(self, params: Tensors, grads: Tensors, step: int, signals: dict[str, LayerSignals]) -> Tensors:
        """Return what is to be added to the parameters."""
        averaging = self.contestant.averaging
        decays = averaging is None or averaging.decay
        schedule = 1 - (step - 1) / self.problem.steps if decays else 1.0
        updates = {}
        for name, grad in grads.items():
            momentum = self._momentum(name, grad, step)
            if not name.endswith("weight"):
                self.second[name] = average(self.second.get(name), grad.square(), SECOND)
                updates[name] = -schedule * VECTOR_STEP * adam(momentum, self.second[name], 1)
                continue
            direction = self.directions.setdefault(name, self.contestant.direction())
            turned = direction(momentum.flatten(2), grad.flatten(2), step, signals.get(name))
            rate = schedule * self.multiplier
            moved = self._size(grad) * self._scaled(turned).reshape(grad.shape)
            updates[name] = -rate * (moved + DECAY * params[name])
        return updates if averaging is None else self._averaged(averaging, params, updates, step)

    def evaluated(self, params: Tensors) -> Tensors:
        """Return the parameters to be judged."""
        return self.average or params

    def state(self) -> list[Tensor]:
        """Return the tensors kept between steps."""
        kept = [*self.slow.values(), *self.fast.values(), *self.second.values(), *self.moving.values()]
        return kept + [part for direction in self.directions.values() for part in state_tensors(direction)]

    def _momentum(self, name: str, grad: Tensor, step: int) -> Tensor:
        share = self.contestant.fast_share
        if share is None:
            self.slow[name] = average(self.slow.get(name), grad, SLOW)
            return self.slow[name] / (1 - SLOW**step)
        mixed = torch.zeros_like(grad)
        for kept, rate, weight in ((self.slow, SLOW, 1 - share), (self.fast, FAST, share)):
            if weight:
                kept[name] = average(kept.get(name), grad, rate)
                mixed += weight * (rate / (1 - rate**step) * kept[name] + (1 - rate) * grad)
        return mixed

    def _size(self, grad: Tensor) -> float:
        if self.contestant.own_step:
            return self.contestant.own_step
        nominal = self.problem.kernel_step if grad.ndim > 3 else self.problem.matrix_step
        return nominal * math.prod(grad.shape[2:]) ** -0.5

    def _scaled(self, turned: Tensor) -> Tensor:
        return turned if self.contestant.own_step else unit_rms(turned, 2)

    def _averaged(self, averaging: Averaging, params: Tensors, updates: Tensors, step: int) -> Tensors:
        """Move z by the updates and x towards z; return what moves y, which is what the net holds."""
        if not self.moving:
            self.average, self.moving = dict(params), dict(params)
        weight = (averaging.power + 1) / (step + averaging.power)
        moves = {}
        for name, update in updates.items():
            self.moving[name] = self.moving[name] + update
            self.average[name] = torch.lerp(self.average[name], self.moving[name], weight)
            moves[name] = torch.lerp(self.average[name], self.moving[name], averaging.at) - params[name]
        return moves


@dataclass
class ReferenceRun:
    """A reference at work."""

    reference: Reference
    problem: Problem
    multiplier: float
    kept: Tensors = field(default_factory=dict)

    def update(self, params: Tensors, grads: Tensors, step: int, signals: dict[str, LayerSignals]) -> Tensors:
        """Return what is to be added to the parameters."""
        copies = len(next(iter(params.values())))
        numbers = {
            "learning_rate": self.multiplier * self.reference.learning_rate,
            "weight_decay": self.reference.weight_decay,
            "momentum": self.reference.momentum,
            "cosine": 0.0,
        }
        theta = {key: torch.full((copies,), value) for key, value in numbers.items()}
        progress = torch.full((copies,), step / self.problem.steps)
        rule = self.reference.rule
        self.kept = self.kept or torch.func.vmap(rule.init_state)(params)
        dims = (0, 0, 0, 0, 0, None)
        updates, self.kept = torch.func.vmap(rule, dims)(theta, params, grads, self.kept, progress, step)
        return updates

    def evaluated(self, params: Tensors) -> Tensors:
        """Return the parameters to be judged."""
        return params

    def state(self) -> list[Tensor]:
        """Return the tensors kept between steps; those that were never touched do not count."""
        return [tensor for tensor in self.kept.values() if tensor.any()]


@dataclass(frozen=True)
class Outcome:
    """One training of every seed; losses in nats, infinite where any seed's became infinite.

    Attributes:
        train: final loss on training images, one per seed.
        val: final loss on all validation images.
        test: final loss on all test images.
        curve: loss on some validation images, (points, seeds), every `CURVE_EVERY` steps.
    """

    train: list[float]
    val: list[float]
    test: list[float]
    curve: list[list[float]]


def train(
    problem: Problem, entrant: Contestant | Reference, multiplier: float, seeds: tuple[int, ...]
) -> Outcome:
    """Train one copy per seed, all side by side."""
    params = problem.net.init(seeds)
    batches = problem.batches(seeds)
    optimizer = entrant.start(problem, multiplier)
    curve = []
    for step in range(1, problem.steps + 1):
        part = problem.data.train[batches[step - 1]]
        params, finite = advance(problem, entrant, optimizer, params, (part.images, part.labels), step)
        if not finite:
            worst = [math.inf] * len(seeds)
            return Outcome(worst, worst, worst, [worst] * (problem.steps // CURVE_EVERY))
        if step % CURVE_EVERY == 0:
            judged = optimizer.evaluated(params)
            curve.append(problem.loss(judged, problem.data.val, CURVE_IMAGES).tolist())
    judged = optimizer.evaluated(params)
    return Outcome(
        problem.loss(judged, problem.data.train, TRAIN_IMAGES).tolist(),
        problem.loss(judged, problem.data.val).tolist(),
        problem.loss(judged, problem.data.test).tolist(),
        curve,
    )


def advance(
    problem: Problem,
    entrant: Contestant | Reference,
    optimizer: Shell | ReferenceRun,
    params: Tensors,
    batch: tuple[Tensor, Tensor],
    step: int,
) -> tuple[Tensors, bool]:
    """Return the parameters after one more step, and whether all losses before it were finite."""
    grads, signals, finite = gradients(problem, params, batch, entrant.signals)
    if not finite:
        return params, False
    with torch.no_grad():
        updates = optimizer.update(params, grads, step, signals)
        return {name: param + updates[name] for name, param in params.items()}, True


def gradients(
    problem: Problem, params: Tensors, batch: tuple[Tensor, Tensor], recorded: bool
) -> tuple[Tensors, dict[str, LayerSignals], bool]:
    """Return the gradients on a batch, what the layers saw if `recorded`, and whether all is finite."""
    leaves = {name: param.detach().requires_grad_() for name, param in params.items()}
    recorder = Recorder() if recorded else None
    loss = losses(problem.net(leaves, batch[0], recorder), batch[1]).mean(1)
    loss.sum().backward()
    grads = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    signals = {} if recorder is None else recorder.signals()
    finite = all(bool(grad.isfinite().all()) for grad in grads.values())
    return grads, signals, finite and bool(loss.isfinite().all())
