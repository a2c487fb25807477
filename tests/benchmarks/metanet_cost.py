"""Benchmark: what the role-tied network costs per parameter, from 1e4 to 1e7 parameters.

    OMP_NUM_THREADS=1 python tests/benchmarks/metanet_cost.py --table tests/benchmarks/metanet_cost.md

One thread, single precision, no gradient; processor time, which other work on the machine disturbs little,
the best of some repetitions. The slope is that of log time over
log parameters, by least squares: 1 is linear.
"""

import argparse
import math
import platform
import resource
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch

from nfopt.nn import RoleTiedConfig, RoleTiedNetwork
from nfopt.symmetry import Atom, PermutationSpec, TensorAxes
from nfopt.weightspace import WeightSpaceFeatures

COMMAND = "OMP_NUM_THREADS=1 python tests/benchmarks/metanet_cost.py --table tests/benchmarks/metanet_cost.md"
HIDDEN_LAYERS = 4
INPUTS, CLASSES, KERNEL = 3, 10, 3


def mlp(width: int) -> PermutationSpec:
    """Return the spec of an MLP of `HIDDEN_LAYERS` hidden layers of `width` neurons."""
    atoms = [Atom("x", INPUTS), *(Atom(f"h{i}", width) for i in range(HIDDEN_LAYERS)), Atom("y", CLASSES)]
    tensors = {}
    for i, (into, out) in enumerate(pairwise(atoms)):
        tensors[f"{i}.weight"] = TensorAxes((out, into), "linear", ("out", "in"), i / HIDDEN_LAYERS)
        tensors[f"{i}.bias"] = TensorAxes((out,), "bias", ("out",), i / HIDDEN_LAYERS)
    return PermutationSpec(tensors, {"x": "an input of the model", "y": "an output of the model"})


def cnn(width: int) -> PermutationSpec:
    """Return the spec of a CNN of `HIDDEN_LAYERS` 3 x 3 convolutions of `width` channels."""
    plain = mlp(width)
    kernel = (Atom("kh", KERNEL), Atom("kw", KERNEL))
    tensors = {
        name: TensorAxes(entry.axes + kernel, "conv", ("out", "in", "kernel", "kernel"), entry.depth)
        if entry.role == "linear"
        else entry
        for name, entry in plain.tensors.items()
    }
    return PermutationSpec(tensors, {**plain.fixed, "kh": "kernel", "kw": "kernel"})


def width_for(parameters: float, positions: int) -> int:
    """Return the width at which the middle layers hold about `parameters` weights."""
    return max(4, round((parameters / ((HIDDEN_LAYERS - 1) * positions)) ** 0.5))


def seconds(spec: PermutationSpec, repetitions: int) -> tuple[float, float]:
    """Return the best time of features and of the network for random weights and gradients."""
    generator = torch.Generator().manual_seed(0)
    weights, gradients = (
        {name: torch.randn(entry.shape, generator=generator) for name, entry in spec.tensors.items()}
        for _ in range(2)
    )
    features = WeightSpaceFeatures()
    network = RoleTiedNetwork(RoleTiedConfig.reading(features, readouts=1), generator)
    best = [math.inf, math.inf]
    with torch.no_grad():
        for _ in range(repetitions):
            start = time.process_time()
            read = features(spec, weights, gradients)
            middle = time.process_time()
            network(read)
            end = time.process_time()
            best = [min(best[0], middle - start), min(best[1], end - middle)]
    return best[0], best[1]


def slope(points: list[tuple[float, float]]) -> float:
    """Return the least-squares slope of log y over log x."""
    logs = torch.tensor(points, dtype=torch.float64).log()
    x, y = (logs - logs.mean(0)).unbind(-1)
    return float((x * y).sum() / (x * x).sum())


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, help="file to write the table to")
    parser.add_argument("--largest", type=float, default=1e7, help="largest number of parameters")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Cost of the role-tied network",
        "",
        f"`{COMMAND}`",
        "",
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, one thread, "
        "float32, no gradient, processor time, best of 5 (of 2 from 3e6 on). Weights and gradients in, one "
        "channel per parameter and a readout out; default configuration (2 layers, 32 and 8 channels).",
        "",
        "| spec | parameters | neurons | features, ms | network, ms | ns / parameter | peak so far, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    slopes = []
    for kind, build, positions in (("MLP", mlp, 1), ("CNN", cnn, KERNEL**2)):
        points = []
        for exponent in (4, 4.5, 5, 5.5, 6, 6.5, 7):
            if 10**exponent > arguments.largest * 1.01:
                continue
            spec = build(width_for(10**exponent, positions))
            parameters = sum(math.prod(entry.shape) for entry in spec.tensors.values())
            read, network = seconds(spec, 2 if exponent > 6 else 5)
            points.append((parameters, read + network))
            neurons = sum(atom.size for atom in spec.atoms.values())
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            lines.append(
                f"| {kind} | {parameters:,} | {neurons:,} | {1e3 * read:.1f} | {1e3 * network:.1f} | "
                f"{1e9 * (read + network) / parameters:.0f} | {memory:,.0f} |"
            )
            sys.stdout.write(lines[-1] + "\n")
        large = [point for point in points if point[0] > 9e4]
        slopes.append(
            f"{kind}: slope {slope(points):.2f} over all sizes, {slope(large):.2f} from 1e5 on "
            "(below, the fixed cost of launching operations shows)."
        )
        sys.stdout.write(slopes[-1] + "\n")
    text = "\n".join([*lines, "", *slopes]) + "\n"
    if arguments.table:
        arguments.table.write_text(text)


if __name__ == "__main__":
    main()
