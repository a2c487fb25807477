"""Streams in a contest of edits: batches at random and class after class, edits reset and carried on."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from statistics import fmean, stdev
from typing import Any

import torch
from pydantic import JsonValue

from nfopt.editing import Method
from nfopt.meta.editor_contest import UNEDITED, Arena
from nfopt.meta.editor_streams import ORDERS, Order, StreamTrial, batches_of, stream_accuracy
from nfopt.progress import Progress
from nfopt.recipe.job import RunContext, Table
from nfopt.recipe.strict import Count, Strict
from nfopt.seeds import derive_seed


class StreamOptions(Strict):
    """A stream of target images.

    Attributes:
        batch: images per batch, for which one edit is made.
        images: images in all, at most; whole batches are taken.
    """

    batch: Count = 64
    images: Count = 320


def stream_trials(
    options: StreamOptions,
    context: RunContext,
    arena: Arena,
    methods: Mapping[str, Method | None],
    domains: Sequence[str],
    seed: int,
) -> list[dict[str, Any]]:
    """Return a trial of every method on every net, domain and order, reset and carried on."""
    modes: list[tuple[Order, bool]] = [(order, carried) for order in ORDERS for carried in (False, True)]
    count = min(options.images, len(arena.seen[domains[0]])) // options.batch
    total, done = len(methods) * len(domains) * len(arena.nets) * len(modes) * count, 0

    def step() -> None:
        nonlocal done
        done += 1
        context.progress(Progress("edit along streams", done, total))

    def compute(name: str, method: Method | None) -> JsonValue:
        rows = []
        for domain in domains:
            split = arena.seen[domain]
            split = split[torch.arange(min(options.images, len(split)))]
            for order, carried in modes:
                for number, net in enumerate(arena.nets):
                    batches = batches_of(split, options.batch, order, derive_seed(seed, "stream", number))
                    own = derive_seed(seed, name, domain, number)
                    found = stream_accuracy(net, method, batches, own, carried=carried, after_batch=step)
                    rows.append(asdict(StreamTrial(name, domain, order, carried, number, found)))
        return rows

    trials: list[dict[str, Any]] = []
    for number, (name, method) in enumerate(methods.items()):
        trials += context.piece(f"stream-{number}", partial(compute, name, method))
    return trials


def stream_table(trials: Sequence[Mapping[str, Any]], options: StreamOptions) -> Table:
    """Return accuracy by method, order, and whether edits were carried on."""
    methods = list(dict.fromkeys(trial["method"] for trial in trials))
    lines = []
    for method in methods:
        cells = []
        for order in ORDERS:
            for carried in (False, True):
                own: dict[int, list[float]] = {}
                for t in trials:
                    if (t["method"], t["order"], t["carried"]) == (method, order, carried):
                        own.setdefault(t["net"], []).append(100 * t["accuracy"])
                nets = [fmean(values) for values in own.values()]
                error = f" ± {stdev(nets) / len(nets) ** 0.5:.1f}" if len(nets) > 1 else ""
                alike = method == UNEDITED and carried
                cells.append("" if alike else f"{fmean(nets):.1f}{error}")
        lines.append((method, *cells))
    columns = ("method", "shuffled,\nreset", "shuffled,\ncontinual", "sorted,\nreset", "sorted,\ncontinual")
    note = (
        f"Batches of {options.batch} images, at random or sorted by class; each is judged by the net edited "
        "for it, from the base (reset) or from the last batch's (continual). Mean over domains ± standard "
        "error over nets."
    )
    return Table("Streams of target images: accuracy (%)", columns, tuple(lines), (note,))
