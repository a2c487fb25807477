"""Streams in a contest of edits: batches at random and class after class, edits reset and carried on."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from statistics import fmean
from typing import Any

import torch
from pydantic import JsonValue

from nfopt.editing import Gate, Method
from nfopt.meta.editor_contest import UNEDITED, Arena
from nfopt.meta.editor_streams import ORDERS, Order, StreamTrial, batches_of, stream_accuracy
from nfopt.progress import Progress
from nfopt.recipe.adapt.options import GateOptions
from nfopt.recipe.job import RunContext, Table
from nfopt.recipe.strict import Count, Strict
from nfopt.seeds import derive_seed
from nfopt.spread import spread


class StreamOptions(Strict):
    """A stream of target images.

    Attributes:
        batch: images per batch, for which one edit is made.
        images: images in all, at most; whole batches are taken.
        gate: bounds of a gate, `{}` for its own, by which every method is tried once more; null for none.
    """

    batch: Count = 64
    images: Count = 320
    gate: GateOptions | None = None


def stream_trials(
    options: StreamOptions,
    context: RunContext,
    arena: Arena,
    methods: Mapping[str, Method | None],
    domains: Sequence[str],
    seed: int,
) -> list[dict[str, Any]]:
    """Return a trial of every method on every net, domain and order, reset and carried on, gated and not."""
    modes: list[tuple[Order, bool]] = [(order, carried) for order in ORDERS for carried in (False, True)]
    gates = (None,) if options.gate is None else (None, options.gate)
    count = min(options.images, len(arena.seen[domains[0]])) // options.batch
    tries = sum(1 if method is None else len(gates) for method in methods.values())
    total, done = tries * len(domains) * len(arena.nets) * len(modes) * count, 0

    def step() -> None:
        nonlocal done
        done += 1
        context.progress(Progress("edit along streams", done, total))

    def compute(name: str, method: Method | None, gate: Gate | None) -> JsonValue:
        rows = []
        for domain in domains:
            split = arena.seen[domain]
            split = split[torch.arange(min(options.images, len(split)))]
            for order, carried in modes:
                for number, net in enumerate(arena.nets):
                    batches = batches_of(split, options.batch, order, derive_seed(seed, "stream", number))
                    own = derive_seed(seed, name, domain, number)
                    found = stream_accuracy(
                        net, method, batches, own, carried=carried, gate=gate, after_batch=step
                    )
                    trial = StreamTrial(name, domain, order, carried, gate is not None, number, *found)
                    rows.append(asdict(trial))
        return rows

    trials: list[dict[str, Any]] = []
    for number, (name, method) in enumerate(methods.items()):
        for gate in gates:
            if method is not None or gate is None:
                piece = f"stream-{number}" if gate is None else f"stream-{number}-gated"
                trials += context.piece(piece, partial(compute, name, method, gate))
    return trials


def stream_table(trials: Sequence[Mapping[str, Any]], options: StreamOptions) -> Table:
    """Return accuracy by method, gated or not, order, and whether edits were carried on."""
    lines = []
    for method, gated in dict.fromkeys((trial["method"], trial["gated"]) for trial in trials):
        cells = []
        for order in ORDERS:
            for carried in (False, True):
                how = (method, gated, order, carried)
                own = [t for t in trials if (t["method"], t["gated"], t["order"], t["carried"]) == how]
                alike = method == UNEDITED and carried
                cells.append("" if alike else _cell(own, gated=gated))
        lines.append((f"{method}, gated" if gated else method, *cells))
    columns = ("method", "shuffled,\nreset", "shuffled,\ncontinual", "sorted,\nreset", "sorted,\ncontinual")
    notes = [
        f"Batches of {options.batch} images, at random or sorted by class; each is judged by the net edited "
        "for it, from the base (reset) or from the last batch's (continual). Mean over domains ± standard "
        "error over nets."
    ]
    if options.gate is not None:
        notes.append("gated: edits that the gate refuses are left away; in brackets the share of them in %.")
    return Table("Streams of target images: accuracy (%)", columns, tuple(lines), tuple(notes))


def _cell(trials: Sequence[Mapping[str, Any]], *, gated: bool) -> str:
    by_net: dict[int, list[float]] = {}
    for trial in trials:
        by_net.setdefault(trial["net"], []).append(100 * trial["accuracy"])
    nets = [fmean(values) for values in by_net.values()]
    refused = f" ({100 * fmean(t['refused'] for t in trials):.0f})" if gated else ""
    return f"{spread(nets):.1f}{refused}"
