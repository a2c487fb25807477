"""Time of one optimizer step: NFOptimizer against torch's AdamW and timm's Muon, interleaved.

    python -m tests.benchmarks.optimizer_step [--model fmnist-mlp --model resnet18 ...] [--rounds 30]

Prints, per model, medians over the rounds as ratios to AdamW(foreach), to Muon and to forward+backward at
batch 64, and the bytes of optimizer state per parameter. Forward and backward are timed at the batch size of
the table MODELS and scaled to 64 in proportion. nfopt's network decides in one step of ten; "mean of ten"
counts that step in. Everything runs in one process, in turns, on `--threads` threads. With `--cpu-time` it is
this process's time on the processor, for a machine on which others work (one thread).

`--slope` times stacks of layers of one width instead, from 1e4 to 1e8 parameters.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from math import log

import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from nfopt.optim import NFOptimizer

CADENCE = 10
BATCH = 64
WIDTH = 256


def stack(layers: int, width: int) -> nn.Module:
    """Return an MLP of equal layers."""
    parts = [part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *parts)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "fmnist-mlp": (
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
        ),
        (64, 1, 28, 28),
    ),
    "resnet18": (lambda: timm.create_model("resnet18", num_classes=1000), (4, 3, 224, 224)),
    "resnet50": (lambda: timm.create_model("resnet50", num_classes=1000), (4, 3, 224, 224)),
    "vit-b16": (lambda: timm.create_model("vit_base_patch16_224", num_classes=1000), (2, 3, 224, 224)),
    "mlp-100m": (lambda: stack(96, 1024), (64, 1, 32, 32)),
}


def muon(model: nn.Module) -> torch.optim.Optimizer:
    """Return timm's Muon as its users build it: matrices and kernels by Muon, the rest by AdamW."""
    return create_optimizer_v2(model, opt="muon", lr=0.01, weight_decay=0.05)


def optimizers(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    """Return the contestants on the same parameters."""
    return {
        "AdamW (foreach)": torch.optim.AdamW(model.parameters(), foreach=True),
        "AdamW (fused)": torch.optim.AdamW(model.parameters(), fused=True),
        "timm Muon": muon(model),
        "nfopt": NFOptimizer(model, total_steps=1000),
        "nfopt, bfloat16 products": NFOptimizer(model, total_steps=1000, matmul_dtype=torch.bfloat16),
    }


def timed(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the seconds that `work` takes by a clock."""
    start = clock()
    work()
    return clock() - start


def state_bytes(optimizer: torch.optim.Optimizer, parameters: int) -> float:
    """Return the bytes of tensors in the optimizer's state, per parameter."""
    tensors = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    return sum(v.numel() * v.element_size() for v in tensors) / parameters


def timings(
    contestants: dict[str, torch.optim.Optimizer], rounds: int, clock: Callable[[], float]
) -> tuple[dict[str, float], float]:
    """Return the median seconds of each one's step, in turns, and of a step of nfopt's that decides."""
    seconds: dict[str, list[float]] = {key: [] for key in contestants}
    deciding = []
    for optimizer in contestants.values():
        optimizer.step()
    for i in range(rounds):
        for key, optimizer in contestants.items():
            seconds[key].append(timed(optimizer.step, clock))
        if i < max(1, rounds // CADENCE):
            for group in contestants["nfopt"].param_groups:
                group["steps_taken"] = CADENCE * (i + 1)
            deciding.append(timed(contestants["nfopt"].step, clock))
    return {key: statistics.median(values) for key, values in seconds.items()}, statistics.median(deciding)


def measure(name: str, rounds: int, clock: Callable[[], float]) -> list[str]:
    """Return the table rows of one model."""
    make, shape = MODELS[name]
    model = make()
    inputs, targets = torch.randn(shape), torch.randint(10, shape[:1])

    def forward_backward() -> None:
        model.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()

    contestants = optimizers(model)
    forward_backward()
    passes = statistics.median(timed(forward_backward, clock) for _ in range(max(2, rounds // 3)))
    passes *= BATCH / shape[0]
    median, deciding = timings(contestants, rounds, clock)
    parameters = sum(p.numel() for p in model.parameters())
    states = {key: state_bytes(optimizer, parameters) for key, optimizer in contestants.items()}
    key = "nfopt, mean of ten"
    median[key], states[key] = ((CADENCE - 1) * median["nfopt"] + deciding) / CADENCE, states["nfopt"]
    return [
        f"| {name} ({parameters / 1e6:.3g} M) | {key} | {1e3 * median[key]:.2f} | "
        f"{median[key] / median['AdamW (foreach)']:.2f} | {median[key] / median['timm Muon']:.2f} | "
        f"{100 * median[key] / passes:.1f} % | {states[key]:.1f} |"
        for key in median
    ]


def slope(rounds: int, clock: Callable[[], float], most: int) -> list[str]:
    """Return the rows of a table of step time against the number of parameters."""
    rows, before = [], None
    for layers, width in ((1, 100), (2, WIDTH), (15, WIDTH), (152, WIDTH), (1520, WIDTH)):
        model = stack(layers, width)
        parameters = sum(p.numel() for p in model.parameters())
        if parameters > most:
            break
        for param in model.parameters():
            param.grad = torch.randn_like(param)
        contestants: dict[str, torch.optim.Optimizer] = {
            "timm Muon": muon(model),
            "nfopt": NFOptimizer(model, 1000, example_inputs=torch.randn(2, width)),
            "bfloat16": NFOptimizer(
                model, 1000, example_inputs=torch.randn(2, width), matmul_dtype=torch.bfloat16
            ),
        }
        median, _ = timings(contestants, rounds, clock)
        mine = median["nfopt"]
        grown = "" if before is None else f"{log(mine / before[1]) / log(parameters / before[0]):.2f}"
        before = parameters, mine
        rows.append(
            f"| {parameters:,} | {layers} x {width} | {1e3 * mine:.2f} | {1e9 * mine / parameters:.1f} | "
            f"{grown} | {mine / median['timm Muon']:.2f} | {median['bfloat16'] / median['timm Muon']:.2f} |"
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", choices=sorted(MODELS))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--slope", action="store_true")
    parser.add_argument("--most", type=int, default=10**9, help="parameters of the largest stack of --slope")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    if options.slope:
        print("| parameters | layers x width | nfopt, ms | ns / parameter | slope | / Muon | in bfloat16 |")
        print("|---|---|---|---|---|---|---|")
        slope(options.rounds, clock, options.most)
        return
    print("| model | optimizer | step ms | / AdamW | / Muon | of fwd+bwd at 64 | state bytes/param |")
    print("|---|---|---|---|---|---|---|")
    for name in options.model or ["fmnist-mlp", "resnet18"]:
        for row in measure(name, options.rounds, clock):
            print(row, flush=True)


if __name__ == "__main__":
    main()
