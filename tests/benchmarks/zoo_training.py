"""Benchmark: nets of a zoo side by side against a loop that trains ordinary modules one after another.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.zoo_training --table tests/benchmarks/zoo_training.md
    python -m tests.benchmarks.zoo_training --threads 2   # the loop may use two threads, and so may we

Every row takes the same optimizer step of the same nets: in a loop (module, autograd, torch.optim), stacked
(torch.func.vmap over the module, autograd, torch.optim over the stacked parameters) and as `nfopt.zoo` does.
Times are per net and step: processor time with one thread, time of the clock with several. Single steps of
the contestants take turns, a hundred times or more, and the lower decile counts: other work on the machine
disturbs most of the steps, but not all. Nets that are done early are not part of it: a loop stops each at no
cost, and `nfopt.zoo` within eight steps.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional

from nfopt.data import load_data
from nfopt.models import build_model
from nfopt.zoo import FitConfig, Siren, SirenConfig
from nfopt.zoo.runs import CPU_LANES as RUN_LANES
from nfopt.zoo.runs import Group, Run
from nfopt.zoo.siren import grid
from nfopt.zoo.siren_fit import Fitted, Lanes, cpu_lanes
from nfopt.zoo.siren_gradient import SirenGradient

COMMAND = "OMP_NUM_THREADS=1 python -m tests.benchmarks.zoo_training --table tests/benchmarks/zoo_training.md"
SIDE, POINTS, BATCH = 28, 256, 64
Step = Callable[[], object]
Entrants = dict[str, tuple[int, Step]]


def in_threads(steps: list[Step], at_once: int) -> Step:
    """Return what takes `at_once` steps with each of several groups of nets, in a thread each."""

    def repeat(step: Step) -> None:
        for _ in range(at_once):
            step()

    if len(steps) == 1:
        return lambda: repeat(steps[0])
    pool = ThreadPoolExecutor(len(steps))

    def run() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        list(pool.map(repeat, steps))
        torch.set_num_threads(before)

    return run


def inr_entrants(inputs: int, threads: int) -> Entrants:
    """Return the three ways to fit SIRENs to random signals; for each the nets x steps of one call."""
    config = SirenConfig(inputs)
    points = grid(SIDE, SIDE) if inputs == 2 else torch.linspace(-1, 1, POINTS).unsqueeze(1)
    count = cpu_lanes(len(points))
    targets = torch.rand(count, len(points))
    start = torch.stack([config.start(torch.Generator().manual_seed(i)) for i in range(count)])
    model = Siren(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)

    def loop() -> bool:
        optimizer.zero_grad()
        loss = (model(points).squeeze(1) - targets[0]).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item() <= 1e-4  # the protocol asks at every step whether to stop

    tensors = {n: t.clone().requires_grad_() for n, t in config.named(start).items()}
    of_stack = torch.optim.Adam(list(tensors.values()), lr=5e-4)
    template = Siren(config)

    def stacked() -> None:
        of_stack.zero_grad()
        values = vmap(lambda t: functional_call(template, t, (points,)))(tensors).squeeze(2)
        (values - targets).square().mean(1).sum().backward()
        of_stack.step()

    def lanes() -> Step:
        shape = (SIDE, SIDE) if inputs == 2 else None
        engine = SirenGradient(config, points, count, shape)
        results = Fitted(start.clone(), torch.zeros(count, dtype=torch.long), torch.zeros(count))
        here = Lanes(engine, targets, torch.zeros(count), FitConfig(5e-4, 10**9, None), results)
        here.fill(list(range(count)), list(range(count)))
        return here.step

    ours = in_threads([lanes() for _ in range(threads)], threads)
    return {"loop": (1, loop), "vmap": (count, stacked), "nfopt": (count * threads**2, ours)}


def classifier_entrants(name: str, threads: int) -> Entrants:
    """Return the three ways to train classifiers of the digits; for each the nets x steps of one call."""
    data = load_data("digits")
    options = {"hidden": [32, 32]} if name == "mlp" else {}

    def make(seed: int = 0) -> nn.Module:
        return build_model(name, data.in_shape, 10, seed=seed, options=options)

    def run_of(seed: int) -> Run:
        batches = torch.randint(len(data.train), (1, BATCH), generator=torch.Generator().manual_seed(seed))
        start = {n: p.detach() for n, p in make(seed).named_parameters()}
        return Run(start, 1e-3, 1e-2, batches, (1,), batches[0], batches[0])

    runs = [run_of(seed) for seed in range(RUN_LANES)]
    images, labels = data.train.images, data.train.labels
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def loop() -> None:
        batch = runs[0].batches[0]
        optimizer.zero_grad()
        functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()

    tensors = {n: torch.stack([run.start[n] for run in runs]).requires_grad_() for n in runs[0].start}
    of_stack = torch.optim.AdamW(list(tensors.values()), lr=1e-3)
    template = make()

    def stacked() -> None:
        index = torch.cat([run.batches for run in runs])
        of_stack.zero_grad()
        outputs = vmap(lambda t, x: functional_call(template, t, (x,)))(tensors, images[index])
        total = functional.cross_entropy(outputs.flatten(0, 1), labels[index].flatten(), reduction="sum")
        (total / BATCH).backward()
        of_stack.step()

    groups = [Group(make(), data.train, data.test, runs) for _ in range(threads)]
    ours = in_threads([lambda group=group: group.step(0) for group in groups], threads)
    return {"loop": (1, loop), "vmap": (RUN_LANES, stacked), "nfopt": (RUN_LANES * threads**2, ours)}


def measure(entrants: Entrants, repetitions: int, threads: int) -> dict[str, float]:
    """Return microseconds per net and step: the lower decile of calls that take turns."""
    now = time.process_time if threads == 1 else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in entrants}
    for repetition in range(repetitions + 3):
        for name, (nets, step) in entrants.items():
            began = now()
            step()
            if repetition >= 3:  # the first ones warm up
                taken[name].append(1e6 * (now() - began) / nets)
    return {name: statistics.quantiles(times, n=10)[0] for name, times in taken.items()}


def rows(threads: int, repetitions: int) -> Iterator[str]:
    """Yield the lines of the table."""
    yield "| nets | loop | vmap | nfopt | loop / vmap | loop / nfopt |"
    yield "| --- | --- | --- | --- | --- | --- |"
    cases = {
        "SIREN 2-32-32-1, 28 x 28 pixels": lambda: inr_entrants(2, threads),
        "SIREN 1-32-32-1, 256 points": lambda: inr_entrants(1, threads),
        "MLP 64-32-32-10, batch 64": lambda: classifier_entrants("mlp", threads),
        "small CNN, 8 x 8, batch 64": lambda: classifier_entrants("small-cnn", threads),
    }
    for name, entrants in cases.items():
        best = measure(entrants(), repetitions, threads)
        times = " | ".join(f"{value:.0f}" for value in best.values())
        yield f"| {name} | {times} | {best['loop'] / best['vmap']:.1f} | {best['loop'] / best['nfopt']:.1f} |"


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1, help="threads that each contestant may use")
    parser.add_argument("--repetitions", type=int, default=150)
    parser.add_argument("--table", type=Path, help="also write the table here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = [
        f"Microseconds per net and optimizer step; {options.threads} thread(s), torch {torch.__version__}, "
        f"{platform.machine()}. `{COMMAND}`",
        "",
    ]
    print(lines[0])
    for line in rows(options.threads, options.repetitions):
        print(line, flush=True)
        lines.append(line)
    if options.table:
        options.table.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
