"""A contest of editing methods on nets, images and domains that none of them was made for."""

import copy
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import nn

from nfopt.data import Split
from nfopt.editing import Finetune, Method
from nfopt.editing.methods import Task
from nfopt.errors import EditingError
from nfopt.meta.editor_tasks import CLEAN, few_of_each
from nfopt.metrics import evaluate
from nfopt.seeds import derive_seed, generator

UNEDITED, ORACLE = "source", "oracle"


@dataclass(frozen=True, eq=False)
class Arena:
    """Where edits are made and judged.

    Attributes:
        nets: trained nets in evaluation mode.
        seen: by domain the images that target images are drawn from; image i is the same in every domain.
        test: by domain the images that edits are judged by, among them "clean".
    """

    nets: Sequence[nn.Module]
    seen: Mapping[str, Split]
    test: Mapping[str, Split]


@dataclass(frozen=True)
class Stream:
    """What target images are like.

    Attributes:
        images: their number.
        classes: number of classes that they show, drawn for each net; None for all.
        shots: labels per class, for methods that learn from labels.
    """

    images: int
    classes: int | None = None
    shots: int = 5


@dataclass(frozen=True)
class Trial:
    """One edit of one net: accuracies in [0, 1].

    Attributes:
        method: name of the method.
        domain: name of the domain.
        net: number of the net.
        target: accuracy on test images of the domain after the edit.
        clean: accuracy on clean test images after the edit.
        seconds: time of the edit.
    """

    method: str
    domain: str
    net: int
    target: float
    clean: float
    seconds: float


def target_images(arena: Arena, domain: str, net: int, stream: Stream, seed: int) -> Split:
    """Return the target images of one net: the same ones for every method and, as pictures, every domain."""
    split = arena.seen[domain]
    draw = generator(seed, "targets", net, stream.images, str(stream.classes))
    labels = split.labels.cpu()
    order = torch.randperm(len(labels), generator=draw)
    if stream.classes is not None:
        chosen = torch.randperm(int(labels.max()) + 1, generator=draw)[: stream.classes]
        order = order[torch.isin(labels[order], chosen)]
    if len(order) < stream.images and stream.classes is None:
        raise EditingError(
            f"{stream.images} target images are asked for, but there are {len(order)}. Ask for fewer."
        )
    return split[order[: stream.images].to(split.labels.device)]


def edited_net(net: nn.Module, method: Method | None, target: Split, stream: Stream, seed: int) -> nn.Module:
    """Return a copy of `net` that `method` has edited; one that diverges stays the base."""
    edited = copy.deepcopy(net).requires_grad_(False).eval()
    if method is None:
        return edited
    labels = few_of_each(target.labels, stream.shots) if "labels" in method.needs else None
    task = Task(target.images, labels, None, torch.Generator().manual_seed(derive_seed(seed, "edit")))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "edit"))
            method.fit(edited, task)
    except EditingError:
        return copy.deepcopy(net).eval()
    return edited.eval()


def oracle_net(net: nn.Module, target: Split, seed: int, steps: int = 150) -> nn.Module:
    """Return a copy of `net` fine-tuned on all images of the domain with all their labels."""
    method = Finetune(lr=1e-3, steps=steps, batch_size=64)
    return edited_net(net, method, target, Stream(len(target), shots=len(target)), seed)


def contest(
    arena: Arena,
    methods: Mapping[str, Method | None],
    domains: Iterable[str],
    stream: Stream,
    seed: int,
    *,
    clean: bool = True,
    after_trial: Callable[[], None] = lambda: None,
) -> list[Trial]:
    """Return a trial of every method on every net and domain, all on the same target images."""
    trials = []
    for domain in domains:
        for number, net in enumerate(arena.nets):
            target = target_images(arena, domain, number, stream, seed)
            for name, method in methods.items():
                began = time.perf_counter()
                edited = edited_net(net, method, target, stream, derive_seed(seed, name, domain, number))
                seconds = time.perf_counter() - began
                after = accuracy(edited, arena.test[domain])
                kept = after if domain == CLEAN else accuracy(edited, arena.test[CLEAN]) if clean else 0.0
                trials.append(Trial(name, domain, number, after, kept, seconds))
                after_trial()
    return trials


def tuned(
    arena: Arena,
    grid: Mapping[str, Method],
    domains: Sequence[str],
    stream: Stream,
    seed: int,
    after_trial: Callable[[], None] = lambda: None,
) -> tuple[str, dict[str, float]]:
    """Return the setting with the highest mean accuracy, and all of them."""
    trials = contest(arena, grid, domains, stream, seed, clean=False, after_trial=after_trial)
    means = {name: fmean(t.target for t in trials if t.method == name) for name in grid}
    return max(means, key=lambda name: means[name]), means


def accuracy(net: nn.Module, split: Split) -> float:
    """Return the accuracy of a net in [0, 1]; 0 where its logits are not finite."""
    scores = evaluate(net, split.images, split.labels)
    return scores.accuracy if scores.loss == scores.loss else 0.0


def gap_share(mean: float, source: float, oracle: float) -> float | None:
    """Return the share of the gap from source to oracle that is recovered; None where there is no gap."""
    return (mean - source) / (oracle - source) if oracle - source > 1e-6 else None
