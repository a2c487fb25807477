"""Training many classifiers of one architecture side by side, each with its own rate, data and length."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from threading import Event, Lock

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from nfopt.data import Split
from nfopt.zoo.machine import Machine
from nfopt.zoo.threads import run_in_threads
from nfopt.zoo.zoo import ZooError

BETAS, EPSILON = (0.9, 0.999), 1e-8
CPU_LANES, GPU_LANES = 32, 256
EVALUATED_AT_ONCE = 250
LOSS_CAP = 1e6


@dataclass(frozen=True, eq=False)
class Run:
    """One classifier to be trained.

    Attributes:
        start: initial parameters by name.
        learning_rate: of AdamW, constant.
        weight_decay: of AdamW, decoupled: each step multiplies by 1 - learning_rate x weight_decay.
        batches: for each step the images of the training split that it sees.
        checkpoints: numbers of steps after which the net is kept, ascending; the last is the run's length.
        train_images: images of the training split whose loss is reported.
        test_images: images of the test split whose accuracy is reported; as many for every run.
        classes: classes that are told apart, in the order of the outputs; None for all.
    """

    start: dict[str, Tensor]
    learning_rate: float
    weight_decay: float
    batches: Int[Tensor, "steps batch"]
    checkpoints: tuple[int, ...]
    train_images: Int[Tensor, " images"]
    test_images: Int[Tensor, " images"]
    classes: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Kept:
    """A net of a run at one of its checkpoints.

    Attributes:
        tensors: parameters by name.
        steps: optimizer steps taken.
        train_loss: mean cross-entropy in nats over the run's `train_images`, each `LOSS_CAP` at most, and
            that where the outputs of a net that diverged are not finite.
        test_accuracy: share of the run's `test_images` that are classified rightly.
        diverged: whether the run stands still because its next step was not finite.
    """

    tensors: dict[str, Tensor]
    steps: int
    train_loss: float
    test_accuracy: float
    diverged: bool


def train_runs(
    model: nn.Module,
    train: Split,
    test: Split,
    runs: Sequence[Run],
    machine: Machine | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> list[list[Kept]]:
    """Train every run; what becomes of one does not depend on the others, but for last digits.

    Args:
        model: the architecture; its own parameters are not used. Without buffers (no BatchNorm).
        train: images to train on.
        test: images to test on.
        runs: the runs; number of images per batch and of test images the same for all.
        machine: device, runs side by side (32 on a CPU, 256 on a GPU) and threads.
        report: hears how many runs are done, in one thread at a time.

    Returns:
        For each run its net at each checkpoint.

    Raises:
        ZooError: the model has buffers, or a run's start or numbers do not fit.
    """
    machine = machine or Machine()
    _check(model, runs)
    lanes = machine.lanes_or(CPU_LANES, GPU_LANES)
    # Runs of about the same length side by side, so that few wait for the longest.
    order = sorted(range(len(runs)), key=lambda i: runs[i].checkpoints[-1])
    groups = [order[i : i + lanes] for i in range(0, len(order), lanes)]
    train, test = train.to(machine.device), test.to(machine.device)
    kept: dict[int, list[Kept]] = {}
    stop, lock = Event(), Lock()

    def work(group: list[int]) -> None:
        if stop.is_set():
            return
        found = Group(model, train, test, [runs[i] for i in group]).train(stop)
        with lock:
            kept.update(zip(group, found, strict=True))
            report(len(kept))

    tasks = [lambda group=group: work(group) for group in groups]
    if machine.on_cpu:
        run_in_threads(tasks, min(machine.threads, len(groups)), stop)
    else:
        for task in tasks:
            task()
    return [kept[i] for i in range(len(runs))]


def _check(model: nn.Module, runs: Sequence[Run]) -> None:
    if any(True for _ in model.buffers()):
        raise ZooError(
            "nets with buffers (BatchNorm's statistics) are not trained side by side. Take a model without."
        )
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for i, run in enumerate(runs):
        if {name: tuple(t.shape) for name, t in run.start.items()} != shapes:
            raise ZooError(f"run {i} starts from tensors of another architecture than the model's.")
        steps = run.checkpoints
        if not steps or sorted(set(steps)) != list(steps) or steps[0] < 0 or steps[-1] > len(run.batches):
            raise ZooError(
                f"run {i} is to be kept after {steps} steps; they must ascend and not pass its "
                f"{len(run.batches)} batches."
            )
        if len(run.test_images) != len(runs[0].test_images) or len(run.train_images) != len(
            runs[0].train_images
        ):
            raise ZooError(f"run {i} is measured on another number of images than run 0.")


class Group:
    """Runs side by side, their parameters one after another in the rows of one tensor."""

    def __init__(self, model: nn.Module, train: Split, test: Split, runs: Sequence[Run]) -> None:
        # A copy of its own: while a module runs, it holds the parameters of this thread's nets.
        self.model = deepcopy(model)
        self.train_split, self.test_split, self.runs = train, test, runs
        device = train.images.device
        self.shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        rows = [torch.cat([run.start[name].flatten() for name in self.shapes]) for run in runs]
        self.flat = torch.stack(rows).to(device)
        self.first, self.second = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self.rate, self.decay = (
            torch.tensor(values, dtype=self.flat.dtype, device=device).unsqueeze(1)
            for values in ([r.learning_rate for r in runs], [r.weight_decay for r in runs])
        )
        self.lengths = torch.tensor([run.checkpoints[-1] for run in runs], device=device)
        longest = max(run.checkpoints[-1] for run in runs)
        # A run that is done sees its last batches again, and does not move.
        batches = [r.batches[torch.arange(longest).clamp(max=max(len(r.batches) - 1, 0))] for r in runs]
        self.batches = torch.stack(batches, 1).to(device) if longest else torch.empty(0)
        self.alive = torch.ones(len(runs), dtype=torch.bool, device=device)
        self.label_maps = None
        if runs[0].classes is not None:
            maps = torch.zeros(len(runs), int(train.labels.max()) + 1, dtype=torch.long)
            for row, run in zip(maps, runs, strict=True):
                for output, label in enumerate(run.classes or ()):
                    row[label] = output
            self.label_maps = maps.to(device)

    def train(self, stop: Event) -> list[list[Kept]]:
        """Train to the end and return the nets of every run's checkpoints."""
        kept: list[list[Kept]] = [[] for _ in self.runs]
        for step in range(int(self.lengths.max()) + 1):
            due = [i for i, run in enumerate(self.runs) if step in run.checkpoints]
            if due:
                self._keep(due, step, kept)
            if stop.is_set() or step == len(self.batches):
                break
            self.step(step)
        return kept

    def _named(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([prod(shape) for shape in self.shapes.values()], dim=-1)
        named = zip(self.shapes.items(), parts, strict=True)
        return {name: part.unflatten(-1, shape) if shape else part for (name, shape), part in named}

    def _outputs(self, flat: Tensor, images: Tensor) -> Tensor:
        def one(tensors: dict[str, Tensor], batch: Tensor) -> Tensor:
            return functional_call(self.model, tensors, (batch,))

        return vmap(one)(self._named(flat), images)

    def _labels(self, split: Split, index: Tensor, nets: list[int] | None = None) -> Tensor:
        labels = split.labels[index]
        if self.label_maps is None:
            return labels
        return (self.label_maps if nets is None else self.label_maps[nets]).gather(1, labels)

    def _losses(self, flat: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        outputs = self._outputs(flat, images)
        losses = functional.cross_entropy(outputs.flatten(0, 1), labels.flatten(), reduction="none")
        return losses.unflatten(0, labels.shape).mean(1)

    def step(self, step: int) -> None:
        """Take optimizer step number `step` with every run that is not done."""
        index = self.batches[step]
        images, labels = self.train_split.images[index], self._labels(self.train_split, index)
        leaf = self.flat.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self._losses(leaf, images.to(leaf.dtype), labels).sum(), [leaf])
        beta_1, beta_2 = BETAS
        self.first.lerp_(gradient, 1 - beta_1)
        self.second.mul_(beta_2).addcmul_(gradient, gradient, value=1 - beta_2)
        root = self.second.sqrt().div_((1 - beta_2 ** (step + 1)) ** 0.5).add_(EPSILON)
        moved = self.flat * (1 - self.rate * self.decay)
        moved -= self.rate / (1 - beta_1 ** (step + 1)) * (self.first / root)
        self.alive &= moved.isfinite().all(1)
        moves = self.alive & (step < self.lengths)
        self.flat = torch.where(moves.unsqueeze(1), moved, self.flat)

    @torch.no_grad()
    def _keep(self, due: list[int], step: int, kept: list[list[Kept]]) -> None:
        loss = self._measured(due, self.train_split, [self.runs[i].train_images for i in due])[0]
        accuracy = self._measured(due, self.test_split, [self.runs[i].test_images for i in due])[1]
        for row, i in enumerate(due):
            diverged = not bool(self.alive[i]) or float(loss[row]) >= LOSS_CAP
            tensors = {name: t.cpu().clone() for name, t in self._named(self.flat[i]).items()}
            kept[i].append(Kept(tensors, step, float(loss[row]), float(accuracy[row]), diverged))

    def _measured(self, nets: list[int], split: Split, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the mean loss and the accuracy of some nets, each on its images of a split."""
        flat = self.flat[nets]
        index = torch.stack(list(images)).to(self.flat.device)
        losses, right = torch.zeros(len(index)).to(index.device), torch.zeros(len(index)).to(index.device)
        for part in index.split(EVALUATED_AT_ONCE, dim=1):
            labels = self._labels(split, part, nets)
            outputs = self._outputs(flat, split.images[part].to(flat.dtype))
            each = functional.cross_entropy(outputs.flatten(0, 1), labels.flatten(), reduction="none")
            each = torch.where(each.isfinite(), each, LOSS_CAP).clamp(max=LOSS_CAP)
            losses += each.unflatten(0, labels.shape).sum(1)
            right += (outputs.argmax(-1) == labels).sum(1)
        return losses / index.shape[1], right / index.shape[1]
