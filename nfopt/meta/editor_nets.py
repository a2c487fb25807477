"""Nets to learn editing on: many of one architecture, side by side or in turn, with their statistics."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import cos, pi

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from nfopt.data import Split
from nfopt.editing.editor import NetForward
from nfopt.editing.editor.forward import statistics_names
from nfopt.editing.norms import measure_statistics, put_statistics
from nfopt.progress import Progress, ProgressCallback, silent
from nfopt.seeds import generator

STATISTICS_IMAGES = 512


def stacked_state(modules: Sequence[nn.Module]) -> dict[str, Float[Tensor, "nets ..."]]:
    """Return parameters and running statistics of modules of one architecture, one leading dimension."""
    states = [
        {
            name: tensor.detach()
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
            if tensor.is_floating_point()
        }
        for module in modules
    ]
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def train_side_by_side(
    module: nn.Module,
    initial: Mapping[str, Float[Tensor, "nets ..."]],
    split: Split,
    *,
    total_steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    progress: ProgressCallback = silent,
) -> dict[str, Float[Tensor, "nets ..."]]:
    """Return nets trained by Adam with cosine decay, each on batches of its own.

    Adam acts element by element, so that one optimizer over the stacked tensors is one for each net. The
    running statistics are measured once, at the end.

    Args:
        module: the architecture, in evaluation mode.
        initial: parameters and statistics of the fresh nets.
        split: training images and labels.
        total_steps: optimizer steps.
        batch_size: images per net and step.
        lr: learning rate at the start.
        seed: of the batches.
        progress: hears of the steps.
    """
    count = len(next(iter(initial.values())))
    draw = generator(seed, "batches")

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(total_steps):
            index = torch.randint(0, len(split), (count, batch_size), generator=draw)
            index = index.to(split.labels.device)
            yield split.images[index], split.labels[index]
            progress(Progress("train nets to edit", step + 1, total_steps))

    forward = NetForward(module, many=True)
    tensors = descend_side_by_side(forward, initial, batches(), total_steps=total_steps, lr=lr)
    ones = _all_of_the_batch(forward, tensors)
    with torch.no_grad():
        index = torch.randperm(len(split), generator=draw)[:STATISTICS_IMAGES].to(split.labels.device)
        images = split.images[index].expand(count, *(-1,) * split.images.ndim)
        _, norms = forward(tensors, images, ones)
    return {**tensors, **norms.blended}


def train_in_turn(
    modules: Sequence[nn.Module],
    split: Split,
    *,
    total_steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    first: int = 0,
    progress: ProgressCallback = silent,
) -> dict[str, Float[Tensor, "nets ..."]]:
    """Return what `train_side_by_side` does, one net after the other: faster on CPUs for convolutions.

    Channels lie innermost in memory; the statistics of the end are those of four times as many images.

    Args:
        modules: the fresh nets; they are not changed.
        split: training images and labels.
        total_steps: optimizer steps of each net.
        batch_size: images per step.
        lr: learning rate at the start.
        seed: of the batches.
        first: number of the first of these nets, where they are a part of a longer row.
        progress: hears of the steps.
    """
    trained = []
    for number, module in enumerate(modules):
        draw = generator(seed, "batches", first + number)
        net = copy.deepcopy(module).requires_grad_(True).train().to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(net.parameters(), lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total_steps)
        for step in range(total_steps):
            index = torch.randint(0, len(split), (batch_size,), generator=draw).to(split.labels.device)
            optimizer.zero_grad()
            functional.cross_entropy(net(split.images[index]), split.labels[index]).backward()
            optimizer.step()
            schedule.step()
            done, total = number * total_steps + step + 1, len(modules) * total_steps
            progress(Progress("train nets to edit", done, total))
        net.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
        index = torch.randperm(len(split), generator=draw)[: 4 * STATISTICS_IMAGES].to(split.labels.device)
        images = split.images[index]
        put_statistics(net, measure_statistics(net, images), images=len(images))
        trained.append(net)
    return stacked_state(trained)


def descend_side_by_side(
    forward: NetForward,
    initial: Mapping[str, Float[Tensor, "nets ..."]],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    total_steps: int,
    lr: float,
) -> dict[str, Float[Tensor, "nets ..."]]:
    """Return parameters after Adam, with cosine decay, on each net's own cross-entropy; statistics stay.

    Args:
        forward: the nets' forward pass; BatchNorm normalises by the batch.
        initial: parameters and statistics.
        batches: images [nets, images, ...] and labels [nets, images] of each step.
        total_steps: their number.
        lr: learning rate at the start.
    """
    statistics = {name for norm in forward.norms for name in statistics_names(norm)}
    tensors = {name: t.detach().clone() for name, t in initial.items()}
    trained = [t.requires_grad_(True) for name, t in tensors.items() if name not in statistics]
    optimizer = torch.optim.Adam(trained, lr)
    ones = _all_of_the_batch(forward, tensors)
    for step, (images, labels) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 + cos(pi * step / total_steps)) / 2
        logits, _ = forward(tensors, images, ones)
        # Summed over nets: each has the gradient of its own mean.
        loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        optimizer.zero_grad()
        (loss / labels.shape[1]).backward()
        optimizer.step()
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _all_of_the_batch(forward: NetForward, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    like = next(iter(tensors.values()))
    return {norm: like.new_ones(len(like), 1) for norm in forward.norms}
