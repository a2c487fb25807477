"""Benchmark: zoos made side by side against a loop that trains ordinary modules one after another.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.zoo_training --table tests/benchmarks/zoo_training.md
    python -m tests.benchmarks.zoo_training --threads 2       # the loop may use two threads, and so may we

Every row trains the same nets by the same protocol to the same steps: in a loop (module, autograd,
torch.optim), stacked (torch.func.vmap over the module, autograd, torch.optim over the stacked parameters) and
as `nfopt.zoo` does. Times are per net and optimizer step, the contestants interleaved, the best of some
repetitions: seconds of the clock, and of processors. Nets that are done early are not part of it: all take
the same steps, which is what a loop does best. Other work on the machine costs the side-by-side ways most,
since they live from the caches; measure on a quiet one.
"""

import argparse
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from nfopt.data import Split, load_data
from nfopt.models import build_model
from nfopt.zoo import FitConfig, Machine, Siren, SirenConfig
from nfopt.zoo.runs import Run, train_runs
from nfopt.zoo.siren import grid
from nfopt.zoo.siren_fit import fit_sirens

COMMAND = "OMP_NUM_THREADS=1 python -m tests.benchmarks.zoo_training --table tests/benchmarks/zoo_training.md"
SIDE, POINTS, BATCH = 28, 256, 64
LOOP_NETS, STACKED_NETS = 2, 16


@dataclass(frozen=True)
class Entrant:
    """One way to train: `run` trains `nets` nets for `steps` steps each."""

    nets: int
    steps: int
    run: Callable[[], None]


def inr_entrants(inputs: int, steps: int, nets: int, threads: int) -> dict[str, Entrant]:
    """Return the three ways to fit SIRENs to random signals."""
    config = SirenConfig(inputs)
    points = grid(SIDE, SIDE) if inputs == 2 else torch.linspace(-1, 1, POINTS).unsqueeze(1)
    targets = torch.rand(nets, len(points))
    start = torch.stack([config.start(torch.Generator().manual_seed(i)) for i in range(nets)])
    fit = FitConfig(5e-4, steps, None)

    def loop() -> None:
        for i in range(LOOP_NETS):
            model = Siren(config, seed=i)
            optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
            for _ in range(steps):
                optimizer.zero_grad()
                loss = (model(points).squeeze(1) - targets[i]).square().mean()
                loss.backward()
                optimizer.step()
                _ = loss.item() <= 1e-4  # the protocol asks at every step whether to stop

    def stacked() -> None:
        model = Siren(config)
        tensors = {n: t.clone().requires_grad_() for n, t in config.named(start[:STACKED_NETS]).items()}
        optimizer = torch.optim.Adam(list(tensors.values()), lr=5e-4)
        for _ in range(steps):
            optimizer.zero_grad()
            values = vmap(lambda t: functional_call(model, t, (points,)))(tensors).squeeze(2)
            (values - targets[:STACKED_NETS]).square().mean(1).sum().backward()
            optimizer.step()

    def ours() -> None:
        shape = (SIDE, SIDE) if inputs == 2 else None
        fit_sirens(config, points, targets, start, fit, grid_shape=shape, machine=Machine(workers=threads))

    return {
        "loop": Entrant(LOOP_NETS, steps, loop),
        "vmap": Entrant(STACKED_NETS, steps, stacked),
        "nfopt": Entrant(nets, steps, ours),
    }


def classifier_entrants(name: str, steps: int, nets: int, threads: int) -> dict[str, Entrant]:
    """Return the three ways to train classifiers of the digits."""
    data = load_data("digits")
    options = {"hidden": [32, 32]} if name == "mlp" else {}

    def make(seed: int = 0) -> nn.Module:
        return build_model(name, data.in_shape, 10, seed=seed, options=options)

    def run_of(seed: int) -> Run:
        generator = torch.Generator().manual_seed(seed)
        batches = torch.randint(len(data.train), (steps, BATCH), generator=generator)
        start = {n: p.detach() for n, p in make(seed).named_parameters()}
        return Run(start, 1e-3, 1e-2, batches, (steps,), batches[0], batches[0])

    runs = [run_of(seed) for seed in range(nets)]
    tested = Split(data.train.images, data.train.labels)

    def loop() -> None:
        for run in runs[:LOOP_NETS]:
            model = make()
            model.load_state_dict(run.start)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
            for batch in run.batches:
                optimizer.zero_grad()
                functional.cross_entropy(model(data.train.images[batch]), data.train.labels[batch]).backward()
                optimizer.step()

    def stacked() -> None:
        model = make()
        group = runs[:STACKED_NETS]
        tensors: dict[str, Tensor] = {
            n: torch.stack([run.start[n] for run in group]).requires_grad_() for n in group[0].start
        }
        optimizer = torch.optim.AdamW(list(tensors.values()), lr=1e-3)
        for step in range(steps):
            index = torch.stack([run.batches[step] for run in group])
            optimizer.zero_grad()
            outputs = vmap(lambda t, x: functional_call(model, t, (x,)))(tensors, data.train.images[index])
            labels = data.train.labels[index].flatten()
            losses = functional.cross_entropy(outputs.flatten(0, 1), labels, reduction="sum") / BATCH
            losses.backward()
            optimizer.step()

    def ours() -> None:
        train_runs(make(), data.train, tested, runs, Machine(workers=threads))

    return {
        "loop": Entrant(LOOP_NETS, steps, loop),
        "vmap": Entrant(STACKED_NETS, steps, stacked),
        "nfopt": Entrant(nets, steps, ours),
    }


def measure(entrants: dict[str, Entrant], repetitions: int) -> dict[str, tuple[float, float]]:
    """Return microseconds per net and step, of the clock and of processors: the best of interleaved runs."""
    best = {name: (float("inf"), float("inf")) for name in entrants}
    for repetition in range(repetitions + 1):
        for name, entrant in entrants.items():
            clock, processor = time.perf_counter(), time.process_time()
            entrant.run()
            scale = 1e6 / (entrant.nets * entrant.steps)
            taken = (scale * (time.perf_counter() - clock), scale * (time.process_time() - processor))
            if repetition:  # the first round warms up
                best[name] = (min(best[name][0], taken[0]), min(best[name][1], taken[1]))
    return best


def rows(threads: int, steps: int, repetitions: int) -> Iterator[str]:
    """Yield the lines of the table."""
    yield "| nets | loop | vmap | nfopt | loop / nfopt, clock | loop / nfopt, processors |"
    yield "| --- | --- | --- | --- | --- | --- |"
    cases = {
        "SIREN 2-32-32-1, 28 x 28 pixels": lambda: inr_entrants(2, steps, 16 * threads, threads),
        "SIREN 1-32-32-1, 256 points": lambda: inr_entrants(1, steps, 16 * threads, threads),
        "MLP 64-32-32-10, batch 64": lambda: classifier_entrants("mlp", 2 * steps, 32 * threads, threads),
        "small CNN, 8 x 8, batch 64": lambda: classifier_entrants("small-cnn", steps, 16 * threads, threads),
    }
    for name, entrants in cases.items():
        best = measure(entrants(), repetitions)
        clocks = " | ".join(f"{best[entrant][0]:.0f}" for entrant in best)
        ratios = [best["loop"][kind] / best["nfopt"][kind] for kind in (0, 1)]
        yield f"| {name} | {clocks} | {ratios[0]:.1f} | {ratios[1]:.1f} |"


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1, help="threads that each contestant may use")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--repetitions", type=int, default=4)
    parser.add_argument("--table", type=Path, help="also write the table here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = [
        f"Microseconds per net and optimizer step; {options.threads} thread(s), torch {torch.__version__}, "
        f"{platform.machine()}. `{COMMAND}`",
        "",
    ]
    print(lines[0])
    for line in rows(options.threads, options.steps, options.repetitions):
        print(line, flush=True)
        lines.append(line)
    if options.table:
        options.table.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
