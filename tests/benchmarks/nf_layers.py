"""Benchmark: spec-bound layers against the textbook form, over depth and width, and against the nfn package.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.nf_layers --table tests/benchmarks/nf_layers.md

One thread, single precision; processor time of forward and backward over a batch of nets, the layers of one
row interleaved, the best of some repetitions. Ratios are within one row; absolute times are of this machine.
The nfn package (pip install nfn) joins where it is installed.
"""

import argparse
import importlib.util
import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from nfopt.nn import DWSLinear, NPAttention, NPLinear, PointwiseLinear, UNFLinear, WeightLayout, weight_layout
from nfopt.symmetry import Atom, PermutationSpec, TensorAxes

COMMAND = "OMP_NUM_THREADS=1 python -m tests.benchmarks.nf_layers --table tests/benchmarks/nf_layers.md"
CHANNELS = 16
INPUTS, OUTPUTS = 2, 1
Run = Callable[[], None]


def mlp(width: int, hidden: int) -> PermutationSpec:
    """Return the spec of an MLP of 2 inputs, `hidden` layers of `width` neurons and 1 output."""
    atoms = [Atom("x", INPUTS), *(Atom(f"h{i}", width) for i in range(hidden)), Atom("y", OUTPUTS)]
    tensors = {}
    for i, (into, out) in enumerate(pairwise(atoms)):
        tensors[f"{i}.weight"] = TensorAxes((out, into), "linear", ("out", "in"), i / hidden)
        tensors[f"{i}.bias"] = TensorAxes((out,), "bias", ("out",), i / hidden)
    return PermutationSpec(tensors, {"x": "an input", "y": "an output"})


def step(layer: torch.nn.Module, values: Sequence[Tensor]) -> Run:
    """Return one forward and backward pass of a layer."""

    def run() -> None:
        sum(out.square().mean() for out in layer(values)).backward()

    return run


def inputs(layout: WeightLayout, nets: int) -> list[Tensor]:
    """Return random values of some nets, that need a gradient like those inside a stack."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(nets, *b.shape, b.multiplicity * CHANNELS, generator=generator).requires_grad_()
        for b in layout.blocks
    ]


def released(width: int, hidden: int, nets: int) -> dict[str, Run]:
    """Return the passes of the layers of the nfn package, if it is installed."""
    if importlib.util.find_spec("nfn") is None:
        return {}
    from nfn import layers
    from nfn.common import WeightSpaceFeatures, network_spec_from_wsfeat

    sizes = [INPUTS, *[width] * hidden, OUTPUTS]
    weights = [torch.randn(nets, CHANNELS, o, i, requires_grad=True) for i, o in pairwise(sizes)]
    biases = [torch.randn(nets, CHANNELS, o, requires_grad=True) for o in sizes[1:]]
    features = WeightSpaceFeatures(weights, biases)
    spec = network_spec_from_wsfeat(features)
    found: dict[str, Run] = {}
    for name in ("HNPLinear", "NPLinear"):
        layer = getattr(layers, name)(spec, CHANNELS, CHANNELS)

        def run(layer: torch.nn.Module = layer) -> None:
            out = layer(features)
            sum(t.square().mean() for pair in out for t in pair).backward()

        found[f"nfn {name}"] = run
    return found


def passes(width: int, hidden: int, nets: int) -> dict[str, Run]:
    """Return the passes to compare by name."""
    spec = mlp(width, hidden)
    folded, permuted = weight_layout(spec), weight_layout(spec, permute_io=True)
    generator = torch.Generator().manual_seed(0)
    kinds = {
        "UNF, inputs folded": UNFLinear(folded, CHANNELS, CHANNELS, generator=generator),
        "DWS": DWSLinear(folded, CHANNELS, CHANNELS, generator=generator),
        "UNF, inputs permuted": UNFLinear(permuted, CHANNELS, CHANNELS, generator=generator),
        "NP": NPLinear(permuted, CHANNELS, CHANNELS, generator=generator),
        "attention": NPAttention(permuted, CHANNELS, CHANNELS, generator=generator),
        "pointwise": PointwiseLinear(folded, CHANNELS, CHANNELS, generator=generator),
    }
    runs = {name: step(layer, inputs(layer.layout, nets)) for name, layer in kinds.items()}
    return runs | released(width, hidden, nets)


def milliseconds(runs: dict[str, Run], repetitions: int) -> dict[str, float]:
    """Return the best processor time of each pass, taking turns."""
    best = dict.fromkeys(runs, math.inf)
    for repetition in range(repetitions + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if repetition:  # the first turn warms up
                best[name] = min(best[name], 1e3 * (time.process_time() - start))
    return best


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the least-squares slope of log y over log x."""
    logs = torch.tensor(points, dtype=torch.float64).log()
    x, y = (logs - logs.mean(0)).unbind(-1)
    return float((x * y).sum() / (x * x).sum())


def measure(title: str, cases: Sequence[tuple[int, int]], nets: int, repetitions: int) -> list[str]:
    """Return the lines of one table: one row per (width, hidden layers)."""
    lines: list[str] = [f"## {title}", ""]
    points: dict[str, list[tuple[float, float]]] = {}
    for row, (width, hidden) in enumerate(cases):
        times = milliseconds(passes(width, hidden, nets), repetitions)
        count = sum(math.prod(entry.shape) for entry in mlp(width, hidden).tensors.values())
        for name, each in times.items():
            points.setdefault(name, []).append((count, each))
        if row == 0:
            ratios = ["UNF / DWS", "UNF / NP", *(f"{n} / ours" for n in times if n.startswith("nfn"))]
            header = ["width", "hidden", "parameters", *(f"{n}, ms" for n in times), *ratios]
            lines += [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
        ratio = [
            times["UNF, inputs folded"] / times["DWS"],
            times["UNF, inputs permuted"] / times["NP"],
            *(times[n] / times["DWS" if "HNP" in n else "NP"] for n in times if n.startswith("nfn")),
        ]
        cells = [str(width), str(hidden), f"{count:,}", *(f"{t:.1f}" for t in times.values())]
        lines.append(f"| {' | '.join(cells + [f'{r:.1f}x' for r in ratio])} |")
        sys.stdout.write(lines[-1] + "\n")
    slopes = ", ".join(f"{name} {slope(found[-2:]):.2f}" for name, found in points.items())
    return [*lines, "", f"Slope of log time over log parameters, last two rows: {slopes}.", ""]


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, help="file to write the tables to")
    parser.add_argument("--nets", type=int, default=16, help="nets per batch")
    parser.add_argument("--repetitions", type=int, default=7, help="repetitions of each pass")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Spec-bound layers: time of a forward and backward pass",
        "",
        f"`{COMMAND}`",
        "",
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, one thread, "
        f"float32, processor time, best of {arguments.repetitions}, {arguments.nets} nets a batch, "
        f"{CHANNELS} channels in and out; MLPs of {INPUTS} inputs and {OUTPUTS} output. UNF is the oracle of "
        "the tests, the textbook form of the same maps. The HNPLinear of nfn 0.1.2 lacks some of the maps "
        "(171 of 174 for a 2-5-7-3 net).",
        "",
    ]
    nets, repetitions = arguments.nets, arguments.repetitions
    lines += measure("Over the width", [(w, 2) for w in (8, 16, 32, 64, 128)], nets, repetitions)
    lines += measure("Over the depth", [(32, h) for h in (1, 2, 4, 8)], nets, repetitions)
    if arguments.table:
        arguments.table.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
