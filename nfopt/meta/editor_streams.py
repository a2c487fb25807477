"""Streams of target images: edits for each batch anew, or carried on; all, or those a gate accepts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from nfopt.data import Split
from nfopt.editing import Gate, Method
from nfopt.editing.evidence import gather
from nfopt.editing.model_state import state_of
from nfopt.errors import EditingError
from nfopt.meta.editor_contest import Stream, edited_net
from nfopt.metrics import evaluate
from nfopt.seeds import derive_seed, generator

Order = Literal["shuffled", "sorted"]
ORDERS: tuple[Order, ...] = ("shuffled", "sorted")


@dataclass(frozen=True)
class StreamTrial:
    """One net on one stream.

    Attributes:
        method: name of the method.
        domain: name of the domain.
        order: "shuffled", or "sorted" by class.
        carried: whether an edit starts from the one before ("continual") or from the base ("reset").
        gated: whether edits that the gate refuses are left away.
        net: number of the net.
        accuracy: share of all images of the stream that the net, edited for their batch, tells right.
        refused: share of the edits that the gate refused; 0 without a gate.
    """

    method: str
    domain: str
    order: Order
    carried: bool
    gated: bool
    net: int
    accuracy: float
    refused: float


def batches_of(split: Split, images: int, order: Order, seed: int) -> list[Split]:
    """Return whole batches of a split, at random or class after class.

    Args:
        split: target images.
        images: per batch.
        order: "shuffled", or "sorted" by class (at random within a class).
        seed: of the order.

    Raises:
        EditingError: there are fewer images than one batch has.
    """
    if len(split) < images:
        raise EditingError(
            f"a batch of the stream has {images} images, but there are {len(split)}. Give fewer per batch."
        )
    place = torch.randperm(len(split), generator=generator(seed, "stream"))
    # Cut before sorting: both orders show the same images.
    place = place[: len(split) // images * images].to(split.labels.device)
    if order == "sorted":
        place = place[split.labels[place].argsort(stable=True)]
    return [split[part] for part in place.split(images)]


def stream_accuracy(
    net: nn.Module,
    method: Method | None,
    batches: list[Split],
    seed: int,
    *,
    carried: bool,
    gate: Gate | None = None,
    after_batch: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """Return the accuracy over a stream, each batch judged by the net edited for it, and the share refused.

    Args:
        net: the base; it is not changed.
        method: the method, which must not need labels; None for the base itself.
        batches: the stream.
        seed: of the edits.
        carried: whether an edit starts from the one before it.
        gate: an edit that it refuses leaves the net as it was, as with `adapt`; None applies every edit.
        after_batch: told of every batch.
    """
    current, hits, count, refused = net, 0.0, 0, 0
    for number, batch in enumerate(batches):
        edited = edited_net(current, method, batch, Stream(len(batch)), derive_seed(seed, number))
        if method is not None and gate is not None and not _accepted(gate, current, edited, batch):
            edited, refused = current, refused + 1
        hits += len(batch) * evaluate(edited, batch.images, batch.labels).accuracy
        count += len(batch)
        if carried:
            current = edited
        after_batch()
    return hits / count, refused / len(batches)


def _accepted(gate: Gate, base: nn.Module, edited: nn.Module, batch: Split) -> bool:
    sets = {"target": (batch.images, None)}
    return gate.accepts(gather(base, edited, sets, state_of(base), state_of(edited)))
