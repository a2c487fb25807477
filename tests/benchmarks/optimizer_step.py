"""Time of one optimizer step: NFOptimizer against torch AdamW(foreach) and timm's Muon, interleaved.

    python -m tests.benchmarks.optimizer_step [--model fmnist-mlp --model resnet18 ...] [--rounds 30]

Prints, per model, medians over the rounds as ratios to AdamW(foreach) and to forward+backward, and the bytes
of optimizer state per parameter. Everything runs in one process, in turns, on `--threads` threads. With
`--cpu-time` it is this process's time on the processor, for a machine on which others work (one thread).
"""

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from nfopt.optim import NFOptimizer

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "fmnist-mlp": (
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
        ),
        (128, 1, 28, 28),
    ),
    "resnet18": (lambda: timm.create_model("resnet18", num_classes=10), (64, 3, 64, 64)),
    "resnet50": (lambda: timm.create_model("resnet50", num_classes=10), (64, 3, 64, 64)),
    "vit-b16": (lambda: timm.create_model("vit_base_patch16_224", num_classes=10), (8, 3, 224, 224)),
}


def muon(model: nn.Module) -> torch.optim.Optimizer:
    """Return timm's Muon as its users build it: matrices and kernels by Muon, the rest by AdamW."""
    return create_optimizer_v2(model, opt="muon", lr=0.01, weight_decay=0.05)


def optimizers(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    """Return the contestants on the same parameters."""
    return {
        "AdamW (foreach)": torch.optim.AdamW(model.parameters(), foreach=True),
        "timm Muon": muon(model),
        "nfopt": NFOptimizer(model, total_steps=1000),
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
    seconds: dict[str, list[float]] = {key: [] for key in ["forward+backward", *contestants]}
    for optimizer in contestants.values():
        optimizer.step()
    for _ in range(rounds):
        seconds["forward+backward"].append(timed(forward_backward, clock))
        for key, optimizer in contestants.items():
            seconds[key].append(timed(optimizer.step, clock))
    median = {key: statistics.median(values) for key, values in seconds.items()}
    parameters = sum(p.numel() for p in model.parameters())
    rows = []
    for key, optimizer in contestants.items():
        rows.append(
            f"| {name} ({parameters:,}) | {key} | {1e3 * median[key]:.2f} | "
            f"{median[key] / median['AdamW (foreach)']:.2f} | {median[key] / median['timm Muon']:.2f} | "
            f"{100 * median[key] / median['forward+backward']:.0f} % | "
            f"{state_bytes(optimizer, parameters):.1f} |"
        )
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", choices=sorted(MODELS))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    print("| model (parameters) | optimizer | step ms | / AdamW | / Muon | of fwd+bwd | state bytes/param |")
    print("|---|---|---|---|---|---|---|")
    for name in options.model or ["fmnist-mlp", "resnet18"]:
        for row in measure(name, options.rounds, clock):
            print(row, flush=True)


if __name__ == "__main__":
    main()
