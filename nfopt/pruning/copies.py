"""Many masked copies of one net trained side by side in one batched program, on the same batches."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import cos, pi
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from nfopt.data import ImageData, Split
from nfopt.errors import PruningError
from nfopt.progress import Progress, ProgressCallback, silent
from nfopt.pruning.mask import PruningMask, prunable_parameters
from nfopt.statefile import load_state, save_state
from nfopt.training import batch_indices

EVALUATED_IMAGES = 500  # at a time, for every copy


@dataclass(frozen=True, slots=True)
class CopiesConfig:
    """How copies are trained: AdamW, its learning rate falling to zero along half a cosine.

    Attributes:
        total_steps: optimizer steps.
        batch_size: images per step; all copies read the same ones.
        lr: learning rate of the first step.
        weight_decay: AdamW's, on every parameter.
        seed: fixes the order of the batches.
        save_every: steps between saves of the unfinished state.
    """

    total_steps: int
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 0.0
    seed: int = 0
    save_every: int = 100

    def __post_init__(self) -> None:
        if (
            min(self.total_steps, self.batch_size, self.save_every) < 1
            or self.lr <= 0
            or self.weight_decay < 0
        ):
            raise PruningError(
                "copies are trained with total_steps, batch_size and save_every of 1 or more, lr above 0 and "
                f"weight_decay of 0 or more, not {self}."
            )


@dataclass(frozen=True, slots=True)
class CopyScore:
    """How good one trained copy is on one split: mean cross-entropy in nats, and accuracy in [0, 1]."""

    loss: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class MaskedCopies:
    """Copies of one net: its parameters and statistics stacked, with a mask for each copy.

    Attributes:
        model: the net whose code is run; its own values are not read.
        params: every parameter, [copies, *shape]; pruned elements are zero.
        buffers: every buffer (running statistics), [copies, *shape].
        kept: for each pruned parameter [copies, *shape], True where kept.
    """

    model: nn.Module
    params: Mapping[str, Float[Tensor, "copies ..."]]
    buffers: Mapping[str, Float[Tensor, "copies ..."]] = field(default_factory=dict)
    kept: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, starts: Sequence[nn.Module], masks: Sequence[PruningMask | None]) -> "MaskedCopies":
        """Stack one start and one mask (None for a dense copy) per copy; the starts are not changed.

        Raises:
            PruningError: there are none, their numbers differ, a mask is not one of the net's, or one of
                torch.nn.utils.prune holds the net already.
        """
        if not starts or len(starts) != len(masks):
            raise PruningError(
                f"copies need as many masks as starts, one at least, not {len(masks)} and {len(starts)}."
            )
        for start, mask in zip(starts, masks, strict=True):
            if mask is not None:
                mask.check_fits(start)
        named = [dict(start.named_parameters()) for start in starts]
        if named[0].keys() != prunable_parameters(starts[0]).keys():
            raise PruningError(
                "copies are made of nets that no mask of torch.nn.utils.prune holds; call remove_mask on "
                "them first, and give the mask here."
            )
        device = next(iter(named[0].values())).device
        params = {name: torch.stack([each[name].detach() for each in named]) for name in named[0]}
        stored = [dict(start.named_buffers()) for start in starts]
        buffers = {name: torch.stack([each[name].detach() for each in stored]) for name in stored[0]}
        pruned = list(dict.fromkeys(name for mask in masks if mask is not None for name in mask.kept))
        kept = {
            name: torch.stack(
                [
                    mask.kept[name]
                    if mask is not None and name in mask.kept
                    else torch.ones(params[name].shape[1:], dtype=torch.bool)
                    for mask in masks
                ]
            ).to(device)
            for name in pruned
        }
        params = {name: p * kept[name] if name in kept else p for name, p in params.items()}
        return cls(starts[0], params, buffers, kept)

    @property
    def count(self) -> int:
        """Number of copies."""
        return len(next(iter(self.params.values())))

    def state_of(self, index: int) -> dict[str, Tensor]:
        """Return the parameters and buffers of one copy, by name, as a `state_dict`."""
        return {name: value[index].clone() for name, value in {**self.params, **self.buffers}.items()}

    def outputs(
        self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], images: Tensor
    ) -> Float[Tensor, "copies images classes"]:
        """Return every copy's outputs on the same images; in training mode `buffers` are updated in place."""

        def one(own: dict[str, Tensor], statistics: dict[str, Tensor]) -> Tensor:
            return functional_call(self.model, {**own, **statistics}, (images,))

        if images.device.type != "cpu" or not _convolves(self.model):
            return torch.vmap(one, randomness="different")(dict(params), dict(buffers))
        # On a CPU grouped convolutions, which vmap makes of many, take twice the time of one after another.
        own = {name: value.unbind() for name, value in params.items()}
        statistics = {name: value.unbind() for name, value in buffers.items()}
        return torch.stack(
            [
                one({n: v[i] for n, v in own.items()}, {n: v[i] for n, v in statistics.items()})
                for i in range(self.count)
            ]
        )


def _convolves(model: nn.Module) -> bool:
    return any(isinstance(part, nn.modules.conv._ConvNd) for part in model.modules())


def train_copies(
    copies: MaskedCopies,
    data: ImageData,
    config: CopiesConfig,
    *,
    state_file: Path | None = None,
    progress: ProgressCallback = silent,
    task: str = "train copies",
) -> MaskedCopies:
    """Return the copies after training each under its own mask by cross-entropy.

    Every step of a copy is the step that AdamW would take on that copy alone: the copies share the program
    and the batches, nothing else. Pruned weights and their momenta are zero throughout. The net's mode
    and the global random state stay as they were.

    Args:
        copies: the starts and the masks.
        data: the data set; its training split is moved to the copies' device.
        config: steps, batch, learning rate.
        state_file: where the unfinished state is kept; if it exists the training goes on from there.
        progress: hears how many steps are done.
        task: name in progress records.
    """
    model, kept = copies.model, copies.kept
    split = data.train.to(next(iter(copies.params.values())).device)
    params = {name: value.clone().requires_grad_() for name, value in copies.params.items()}
    buffers = {name: value.clone() for name, value in copies.buffers.items()}
    optimizer = torch.optim.AdamW(params.values(), lr=config.lr, weight_decay=config.weight_decay)
    step = 0
    if state_file is not None and state_file.is_file():
        step = _restore(load_state(state_file), params, buffers, optimizer)
    running = MaskedCopies(model, params, buffers, kept)
    devices = [split.labels.device] if split.labels.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), _in_mode(model, training=True):
        while step < config.total_steps:
            if step % max(config.total_steps // 20, 1) == 0:
                progress(Progress(task, step, config.total_steps, f"{copies.count} side by side"))
            if state_file is not None and step and step % config.save_every == 0:
                save_state(state_file, _snapshot(step, running, optimizer))
            torch.manual_seed(config.seed * 1_000_003 + step)  # what is random inside the net (dropout)
            _take_step(step, running, split, optimizer, config)
            step += 1
    progress(Progress(task, step, config.total_steps, f"{copies.count} side by side"))
    return MaskedCopies(model, {name: p.detach() for name, p in params.items()}, buffers, kept)


@contextmanager
def _in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Have the model in training or evaluation mode, and afterwards, part by part, in the one it was in."""
    before = {part: part.training for part in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for part, mode in before.items():
            part.training = mode


def _take_step(
    step: int,
    copies: MaskedCopies,
    split: Split,
    optimizer: torch.optim.Optimizer,
    config: CopiesConfig,
) -> None:
    index = batch_indices(step, images=len(split), batch_size=config.batch_size, seed=config.seed)
    batch = split[index.to(split.labels.device)]
    optimizer.zero_grad()
    outputs = copies.outputs(copies.params, copies.buffers, batch.images)
    # The sum over copies: each gets the gradient of its own mean loss.
    labels = batch.labels.expand(copies.count, -1)
    (functional.cross_entropy(outputs.flatten(0, 1), labels.flatten()) * copies.count).backward()
    for group in optimizer.param_groups:
        group["lr"] = config.lr * (1 + cos(pi * step / config.total_steps)) / 2
    with torch.no_grad():
        for name, mask in copies.kept.items():
            gradient = copies.params[name].grad
            if gradient is not None:
                # Adam's momenta of a weight whose gradient is always zero stay zero, and so does its step.
                gradient.mul_(mask)
    optimizer.step()


def score_copies(copies: MaskedCopies, split: Split) -> list[CopyScore]:
    """Return loss and accuracy of every copy on a split, in evaluation mode."""
    count, device = len(split), next(iter(copies.params.values())).device
    loss = torch.zeros(copies.count, dtype=torch.float64, device=device)
    right = torch.zeros_like(loss)
    with torch.no_grad(), _in_mode(copies.model, training=False):
        for start in range(0, count, EVALUATED_IMAGES):
            part = split[torch.arange(start, min(start + EVALUATED_IMAGES, count))].to(device)
            outputs = copies.outputs(copies.params, copies.buffers, part.images)
            labels = part.labels.expand(copies.count, -1)
            losses = functional.cross_entropy(outputs.movedim(-1, 1), labels, reduction="none")
            loss += losses.double().sum(1)
            right += (outputs.argmax(-1) == labels).double().sum(1)
    return [
        CopyScore(total / count, hits / count)
        for total, hits in zip(loss.tolist(), right.tolist(), strict=True)
    ]


def _snapshot(step: int, copies: MaskedCopies, optimizer: torch.optim.Optimizer) -> dict[str, object]:
    params = {name: value.detach() for name, value in copies.params.items()}
    return {"step": step, "params": params, "buffers": copies.buffers, "optimizer": optimizer.state_dict()}


def _restore(
    state: Mapping[str, dict[str, Tensor]],
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> int:
    with torch.no_grad():
        for live, stored in ((params, state["params"]), (buffers, state["buffers"])):
            for name, value in live.items():
                value.copy_(stored[name])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])  # pyright: ignore[reportArgumentType]
