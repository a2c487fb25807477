"""Which shares and ranks the learned mask takes on convolutional nets, chosen on training-side tasks alone.

    python -m tests.benchmarks.mask_compromise --results rows.jsonl --table mask_compromise.md

Shares between layers: by magnitudes after the look ahead (`A`), by ERK (`E`), at the geometric mean of the
densities at which both admit a tensor's k-th weight (`G`), or by magnitudes with 40 % of ERK as a floor
(`F`). Ranks within layers: by those magnitudes (`a`), by the learned flow (`n`), or by the product of both
places (`m`). Digits and MNIST with clutter, nets that were not learned from, validation accuracy. Resumable.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor

from nfopt.meta.mask_tasks import MaskTask
from nfopt.pruning import PruningMask, select
from nfopt.pruning.copies import CopiesConfig, MaskedCopies, score_copies, train_copies
from nfopt.pruning.neural import propose, read_model, read_network, scores_of
from nfopt.pruning.neural.compromise import admissions, compromise, erk_worth, places
from nfopt.seeds import derive_seed

STEPS = CopiesConfig(200)
TASKS = {
    "cnn-digits": MaskTask("digits", "cnn", {"channels": [12, 16]}, 8, STEPS),
    "cnn-clutter": MaskTask("mnist_cluttered", "cnn", {"channels": [12, 16, 24]}, 10, STEPS),
    "cnn-clutter-wide": MaskTask("mnist_cluttered", "cnn", {"channels": [16, 32, 32]}, 12, STEPS),
    "cnn-digits-deep": MaskTask("digits", "cnn", {"channels": [16, 16, 24, 24]}, 8, STEPS),
    "resnet-digits": MaskTask("digits", "resnet20", {"width": 6}, 8, STEPS),
}
DENSITIES = (0.1, 0.05, 0.02)
WAYS = ("nf", "Aa", "Ea", "Ga", "Fa", "En", "Gn", "Fn", "Am", "Em", "Gm", "Fm")
SHIPPED = "Gm"
FLOOR = 0.4
SIDE_BY_SIDE = 18
HELD_OUT_NET = 10_000  # seeds below were learned from


def worths(ahead: Mapping[str, Tensor], flow: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the worth of every weight by each way."""
    by_ahead, by_erk = admissions(ahead), admissions(erk_worth(ahead))
    shares = {
        "A": by_ahead,
        "E": by_erk,
        "G": {n: (by_ahead[n] * by_erk[n]).sqrt() for n in ahead},
        "F": {n: torch.minimum(by_ahead[n], by_erk[n] / FLOOR) for n in ahead},
    }
    ranks = {
        "a": {n: places(v) for n, v in ahead.items()},
        "n": {n: places(v) for n, v in flow.items()},
        "m": {n: places(-places(v) * places(flow[n])) for n, v in ahead.items()},
    }
    found = {way: {n: -shares[way[0]][n][ranks[way[1]][n] - 1] for n in ahead} for way in WAYS if way != "nf"}
    return {"nf": dict(flow), **found, SHIPPED: compromise(ahead, flow)}


def masks(task: MaskTask, seed: int) -> dict[tuple[str, float], PruningMask]:
    """Return the masks of one net by each way at each density."""
    network, context = read_network("mask"), task.context(seed, task.spec())
    config = network.config
    inputs = read_model(context, look_ahead_steps=config.look_ahead_steps, look_ahead_lr=config.look_ahead_lr)
    proposal, ahead = propose(network, inputs), {n: v.abs() for n, v in inputs.ahead.items()}
    found = {}
    for density in DENSITIES:
        flow = scores_of(replace(context, density=density), proposal, config.rounds)
        for way, worth in worths(ahead, flow).items():
            found[way, density] = PruningMask.for_model(context.model, select(worth, density))
    return found


def accuracies(task: MaskTask, seed: int) -> dict[str, float]:
    """Return the validation accuracy that one net comes to under each mask."""
    made = list(masks(task, seed).items())
    config = replace(task.training, seed=derive_seed("mask", "variants", seed) % 2**31)
    found = {}
    for start in range(0, len(made), SIDE_BY_SIDE):
        part = made[start : start + SIDE_BY_SIDE]
        copies = MaskedCopies.of([task.net(seed)] * len(part), [mask for _, mask in part])
        scores = score_copies(train_copies(copies, task.data(), config), task.data().val)
        found |= {
            f"{way} {density:g}": s.accuracy for ((way, density), _), s in zip(part, scores, strict=True)
        }
    return found


def table(rows: list[dict]) -> str:
    """Return mean accuracies in %, convolutional nets in a row and residual ones, as markdown."""
    kinds = {"plain": [r for r in rows if r["task"].startswith("cnn")]}
    kinds["residual"] = [r for r in rows if not r["task"].startswith("cnn")]
    head = [f"{kind}, {100 * density:g} %" for kind in kinds for density in DENSITIES]
    lines = [f"| way | {' | '.join(head)} | mean over tasks |", "|---" * (len(head) + 2) + "|"]
    for way in WAYS:
        by_task = defaultdict(list)
        for row in rows:
            by_task[row["task"]].append(mean(100 * row["accuracy"][f"{way} {d:g}"] for d in DENSITIES))
        cells = [cell(kind, way, density) for kind in kinds.values() for density in DENSITIES]
        name = f"**{way}**" if way == SHIPPED else way
        lines.append(f"| {name} | {' | '.join(cells)} | {mean(map(mean, by_task.values())):.1f} |")
    return "\n".join(lines) + "\n"


def cell(rows: list[dict], way: str, density: float) -> str:
    """Return the mean accuracy of a way, and its paired difference to the magnitudes ahead."""
    if len(rows) < 2:
        return ""
    key = f"{way} {density:g}"
    over = [100 * (row["accuracy"][key] - row["accuracy"][f"Aa {density:g}"]) for row in rows]
    shown = f"{mean(100 * row['accuracy'][key] for row in rows):.1f}"
    return shown if way == "Aa" else f"{shown} ({mean(over):+.1f} +- {stdev(over) / len(over) ** 0.5:.1f})"


def main() -> None:
    """Train what is missing from the results file, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, required=True, help="JSON lines, appended to")
    parser.add_argument("--table", type=Path, help="markdown file to write at the end")
    parser.add_argument("--tasks", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = arguments.results.read_text().splitlines() if arguments.results.exists() else []
    rows = [json.loads(line) for line in lines]
    for seed in arguments.seeds:
        for name in arguments.tasks:
            if any((row["task"], row["seed"]) == (name, seed) for row in rows):
                continue
            found = accuracies(TASKS[name], HELD_OUT_NET + seed)
            rows.append({"task": name, "seed": seed, "accuracy": found})
            with arguments.results.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    if arguments.table:
        arguments.table.write_text(table(rows))


if __name__ == "__main__":
    main()
