"""Update directions, alone and mixed: what each brings over orthogonalised momentum, and what it costs.

    nice python -m tests.benchmarks.directions [--task mlp|cnn] [--steps 500] [--seeds 3] [--only NAME ...]

Every direction has the same search over its one number, a multiplier of the step: 1/1.6, 1 and 1.6, then on
in the direction of a best one that lies at the edge, up to 1.6^4. Seeds share starts and batches over
directions. Each training is kept in `--out` and not run again; `--shown` prints the table of what is there.
`--check` proves the directions' implementations instead. Columns:

- best: the step whose validation loss, averaged over all seeds, is lowest; ! if it is the
  last of its search, ? if the search was stopped before its end.
- train, val, test: final losses in nats, mean +- standard error over the seeds, each seed with the step that
  is best on the other seeds. Training images: 5,000 fixed ones.
- val - ours: difference to orthogonalised momentum, paired by seed.
- curve: validation loss averaged over the whole training.
- to AdamW, to Muon: steps until the final loss of the tuned reference on the same 2,000 images is reached;
  - where a seed never does.
- time: processor time of one optimizer step over that of orthogonalised momentum, one copy, one thread.
- bytes: optimizer state per parameter, in 4-byte floats.
"""

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median, stdev

import torch

from nfopt.atomic import replacing
from tests.benchmarks.direction_contest import (
    CURVE_EVERY,
    Contestant,
    Outcome,
    Reference,
    advance,
    gradients,
    train,
)
from tests.benchmarks.direction_entrants import ADAMW, ENTRANTS, MUON, OURS
from tests.benchmarks.direction_tasks import Problem, problem

FACTOR, FIRST, FURTHEST = 1.6, (0, -1, 1), 4
TIMED_STEPS, TIMED_ROUNDS = 20, 3
BACKWARD = "forward and backward"
# The few that the convolutional net is worth trying on.
CNN = (
    ADAMW,
    f"{MUON} 0.9",
    f"{MUON} 0.8",
    OURS,
    "orthogonalised + 0.25 Adam",
    "orthogonalised, averaged",
    "orthogonalised, rows normalised (NorMuon)",
    "SOAP",
    "K-FAC, damping 1",
    "inputs whitened, then orthogonalised",
    "orthogonalised + 0.5 K-FAC",
    "Shampoo",
)
Entrant = Contestant | Reference
Search = dict[int, Outcome]


class Kept:
    """Trainings kept as one small file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, entrant: Entrant, power: int) -> Path:
        """Return the file of a training at the multiplier FACTOR^power."""
        slug = re.sub(r"[^a-z0-9.+]+", "-", entrant.name.lower().replace("-0.", "minus 0."))
        return self.folder / f"{slug}@{power:+d}.json"

    def read(self, entrant: Entrant, power: int) -> Outcome | None:
        """Return a training, or None if it was not run."""
        path = self.path(entrant, power)
        return Outcome(**json.loads(path.read_text())) if path.exists() else None

    def write(self, entrant: Entrant, power: int, outcome: Outcome) -> None:
        """Keep a training."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.path(entrant, power)) as partial:
            partial.write_text(json.dumps(asdict(outcome)))


def next_power(found: Search) -> int | None:
    """Return the power that a search wants next, or None at its end."""
    first = [power for power in FIRST if power not in found]
    if first:
        return first[0]
    best = best_power(found)
    beside = [p for p in (best - 1, best + 1) if p not in found and abs(p) <= FURTHEST]
    return beside[0] if beside else None


def race(entrants: list[Entrant], run: Callable[[Entrant, int], Outcome | None]) -> dict[str, Search]:
    """Run the searches in turns, one training each: stopped at any time, all are equally far.

    Args:
        entrants: who takes part.
        run: trains, or gives None for what is not to be run, which ends that search.
    """
    done: dict[str, Search] = {entrant.name: {} for entrant in entrants}
    waiting = list(entrants)
    while waiting:
        still = []
        for entrant in waiting:
            power = next_power(done[entrant.name])
            outcome = None if power is None else run(entrant, power)
            if power is not None and outcome is not None:
                done[entrant.name][power] = outcome
                still.append(entrant)
        waiting = still
    return done


def best_power(found: Search, without: int | None = None) -> int:
    """Return the power with the lowest mean validation loss over the seeds, but for the seed `without`."""

    def mean(power: int) -> float:
        return fmean(loss for seed, loss in enumerate(found[power].val) if seed != without)

    return min(found, key=mean)


def chosen(found: Search) -> list[Outcome]:
    """Return, for each seed, the training whose step is best on the other seeds."""
    seeds = range(len(found[0].val))
    return [found[best_power(found, seed)] for seed in seeds]


def final(found: Search, part: str) -> list[float]:
    """Return a final loss of each seed, at the step that the others chose."""
    return [getattr(outcome, part)[seed] for seed, outcome in enumerate(chosen(found))]


def curves(found: Search) -> list[list[float]]:
    """Return each seed's curve."""
    return [[point[seed] for point in outcome.curve] for seed, outcome in enumerate(chosen(found))]


def spread(values: list[float], digits: int = 4, signed: bool = False) -> str:
    """Return mean +- standard error."""
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan
    sign = "+" if signed else ""
    return f"{fmean(values):{sign}.{digits}f} ± {error:.{digits}f}"


def steps_to(found: Search, reference: Search) -> str:
    """Return the mean step at which the curve first reaches the reference's final point."""
    reached = []
    for mine, theirs in zip(curves(found), curves(reference), strict=True):
        hits = [i for i, loss in enumerate(mine) if loss <= theirs[-1]]
        if not hits:
            return "-"
        reached.append((hits[0] + 1) * CURVE_EVERY)
    return f"{fmean(reached):.0f}"


def cost(task: Problem, entrants: list[Entrant]) -> dict[str, tuple[float, float]]:
    """Return seconds per step and bytes of state per parameter; entrants take turns, two refreshes each.

    Under `BACKWARD` stand the seconds of forward and backward.
    """
    part = task.data.train[torch.arange(task.batch)]
    batch = part.images[None], part.labels[None]
    running = {}
    for entrant in entrants:
        params, optimizer = task.net.init((0,)), entrant.start(task, 1.0)
        for step in range(1, 11):
            params, _ = advance(task, entrant, optimizer, params, batch, step)
        running[entrant.name] = entrant, optimizer, params
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for turn in range(TIMED_ROUNDS):
        for name, (entrant, optimizer, params) in running.items():
            start = time.thread_time()
            grads, signals, _ = gradients(task, params, batch, entrant.signals)
            if name == OURS:
                seconds.setdefault(BACKWARD, []).append(time.thread_time() - start)
            start = time.thread_time()
            with torch.no_grad():
                for step in range(1, 1 + TIMED_STEPS):
                    optimizer.update(params, grads, 10 + turn * TIMED_STEPS + step, signals)
            seconds[name].append((time.thread_time() - start) / TIMED_STEPS)
    parameters = sum(tensor.numel() for tensor in task.net.init((0,)).values())
    kept = {name: optimizer.state() for name, (_, optimizer, _) in running.items()}
    return {
        name: (
            median(values),
            sum(tensor.numel() * tensor.element_size() for tensor in kept.get(name, [])) / parameters,
        )
        for name, values in seconds.items()
    }


def rows(
    done: dict[str, Search], entrants: list[Entrant], costs: dict[str, tuple[float, float]]
) -> list[str]:
    """Return the table's rows, in the order of the entrants."""
    muon = min(
        (done[entrant.name] for entrant in entrants if entrant.name.startswith(MUON)),
        key=lambda found: fmean(final(found, "val")),
    )
    ours = final(done[OURS], "val")
    printed = []
    for entrant in entrants:
        found = done[entrant.name]
        best = best_power(found)
        edge = " !" if next_power(found) is None and best in (min(found), max(found)) else ""
        edge += "" if next_power(found) is None else " ?"
        seconds, size = costs[entrant.name]
        gained = [a - b for a, b in zip(final(found, "val"), ours, strict=True)]
        cells = [
            entrant.name,
            entrant.setting(FACTOR**best) + edge,
            *(spread(final(found, part)) for part in ("train", "val", "test")),
            "0" if entrant.name == OURS else spread(gained, signed=True),
            f"{fmean(map(fmean, curves(found))):.3f}",
            steps_to(found, done[ADAMW]),
            steps_to(found, muon),
            f"{seconds / costs[OURS][0]:.1f}",
            f"{size:.1f}",
        ]
        printed.append(f"| {' | '.join(cells)} |")
    return printed


def told(costs: dict[str, tuple[float, float]]) -> str:
    """Return the costs' unit as a sentence."""
    ours, backward = (1e3 * costs[name][0] for name in (OURS, BACKWARD))
    return f"\nOne step of orthogonalised momentum: {ours:.1f} ms; forward and backward: {backward:.1f} ms."


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--task", choices=("mlp", "cnn"), default="mlp")
    parser.add_argument("--steps", type=int, help="default: 500 for the mlp, 300 for the cnn")
    parser.add_argument("--seeds", type=int, default=3, help="at least 2")
    parser.add_argument("--only", action="append", default=[], help="part of the names to run")
    parser.add_argument("--out", type=Path, default=Path("runs/directions"))
    parser.add_argument("--shown", action="store_true", help="run nothing more")
    parser.add_argument("--costs", action="store_true", help="only time and bytes, of all; trains nothing")
    parser.add_argument("--check", action="store_true", help="prove the implementations")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.check:
        # Needs the bench extra, for the library's SOAP.
        from tests.benchmarks.direction_checks import run_checks

        sys.exit(0 if run_checks() else 1)
    steps = options.steps or {"mlp": 500, "cnn": 300}[options.task]
    task = problem(options.task, steps)
    kept = Kept(options.out / f"{options.task}-{steps}-steps-{options.seeds}-seeds")
    seeds = tuple(range(options.seeds))

    def run(entrant: Entrant, power: int) -> Outcome | None:
        outcome = kept.read(entrant, power)
        skipped = options.only and not any(part in entrant.name for part in options.only)
        if outcome is None and not options.shown and not skipped:
            start = time.perf_counter()
            outcome = train(task, entrant, FACTOR**power, seeds)
            kept.write(entrant, power, outcome)
            passed = time.perf_counter() - start
            print(
                f"{entrant.name}, {entrant.setting(FACTOR**power)}: train {fmean(outcome.train):.4f}, "
                f"val {fmean(outcome.val):.4f}, test {fmean(outcome.test):.4f} [{passed:.0f} s]",
                file=sys.stderr,
                flush=True,
            )
        return outcome

    if options.costs:
        print("| direction | time | bytes |\n|---|---|---|")
        costs = cost(task, list(ENTRANTS))
        for entrant in ENTRANTS:
            seconds, size = costs[entrant.name]
            print(f"| {entrant.name} | {seconds / costs[OURS][0]:.1f} | {size:.1f} |")
        print(told(costs))
        return
    raced = [e for e in ENTRANTS if options.task == "mlp" or e.name in CNN]
    done = race(raced, run)
    shown = [e for e in raced if done[e.name]]
    missing = {ADAMW, OURS, f"{MUON} 0.9"} - {e.name for e in shown}
    if missing:
        sys.exit(f"The table needs {', '.join(sorted(missing))}: run them first.")
    print(
        "| direction | best | train | val | test | val - ours | curve | to AdamW | to Muon | time | bytes |\n"
        + "|---" * 11
        + "|"
    )
    costs = cost(task, shown)
    print("\n".join(rows(done, shown, costs)))
    print(told(costs))


if __name__ == "__main__":
    main()
