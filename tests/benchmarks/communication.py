"""What an optimizer step sends when parameters are sharded: nfopt against AdamW and Muon.

    python -m tests.benchmarks.communication [--ranks 2] [--measure]
    python -m tests.benchmarks.communication --measure --model vit-b16

Counted, with --measure: collectives and bytes of a step, the mean of ten, on gloo ranks under `fully_shard`,
of AdamW, timm's Muon (its Newton-Schulz runs on DTensors) and NFOptimizer. On paper, without: large models
and many ranks.
Bytes are those that one rank sends: of an all-reduce 2 (N-1)/N, of an all-gather or reduce-scatter (N-1)/N
times the whole buffer, of an all-to-all the buffer but for the part that stays.
"""

import argparse
import warnings
from collections import Counter
from dataclasses import dataclass

import timm
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from nfopt.optim import NFOptimizer
from nfopt.optim.sharded_exchange import orthogonalisation_cost, share_out
from nfopt.optim.sharded_statistics import QUANTITIES, SCALARS
from nfopt.weightspace.incidence import MatrixLayout
from tests.benchmarks.optimizer_step import muon
from tests.distributed.ranks import on_ranks

STEPS = 10  # counted together: in one of them the rule decides
MODELS = {
    "mlp": lambda: nn.Sequential(
        nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    ),
    "vit-tiny": lambda: timm.create_model("vit_tiny_patch16_224", num_classes=10),
    "vit-b16": lambda: timm.create_model("vit_base_patch16_224", num_classes=10),
}


class Traffic(TorchDispatchMode):
    """Counts collectives and the bytes that this rank sends in them."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.ranks = ranks
        self.calls: Counter[str] = Counter()
        self.sent = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it comes back as operations on the slices
        name = str(func)
        if name.startswith(("c10d", "_c10d_functional")) and "wait" not in name and "wrap" not in name:
            kind = name.split(".")[1].strip("_")
            tensors = [t for t in torch.utils._pytree.tree_leaves(args) if isinstance(t, torch.Tensor)]
            size = max((t.numel() * t.element_size() for t in tensors), default=0)
            share = (self.ranks - 1) / self.ranks
            into = self.ranks if kind.startswith("all_gather") and "c10d_functional" in name else 1
            self.calls[kind] += 1
            self.sent += (
                size * into * share * (2 if kind.startswith("allreduce") or "all_reduce" in kind else 1)
            )
        return func(*args, **(kwargs or {}))


def count_on_rank(name: str) -> None:
    """Print what one step of each optimizer sends, from rank 0."""
    ranks = dist.get_world_size()
    makers = {
        "AdamW": lambda model: torch.optim.AdamW(model.parameters()),
        "timm Muon": muon,
        "nfopt": lambda model: NFOptimizer(model, total_steps=100),
    }
    for label, make in makers.items():
        torch.manual_seed(0)
        model = MODELS[name]()
        sizes = sum(p.numel() for p in model.parameters())
        for part in model.children():
            if any(True for _ in part.parameters()):
                fully_shard(part, mesh=init_device_mesh("cpu", (ranks,)))
        fully_shard(model, mesh=init_device_mesh("cpu", (ranks,)))
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer = make(model)
            optimizer.step()
            with Traffic(ranks) as traffic:
                for _ in range(STEPS):
                    optimizer.step()
        if dist.get_rank() == 0:
            counts = traffic.calls.most_common()
            calls = ", ".join(f"{n / STEPS:g} {kind}" for kind, n in counts) or "none"
            total = sum(traffic.calls.values()) / STEPS
            sent = f"{traffic.sent / STEPS / sizes:.3f}"
            print(f"| {name} ({sizes:,}) | {ranks} | {label} | {total:g} | {sent} | {calls} |", flush=True)


@dataclass(frozen=True)
class Transformer:
    """A decoder-only transformer with a gated MLP, on paper.

    Attributes:
        name: how it is called.
        width: of the residual stream.
        layers: number of blocks.
        hidden: width inside the MLP.
        vocabulary: number of tokens.
    """

    name: str
    width: int
    layers: int
    hidden: int
    vocabulary: int

    def matrices(self) -> list[tuple[int, int]]:
        """Shapes of the matrices that are orthogonalised; the head is one of them."""
        block = [(self.width, self.width)] * 4 + [(self.hidden, self.width)] * 2 + [(self.width, self.hidden)]
        return block * self.layers + [(self.vocabulary, self.width)]

    def parameters(self) -> int:
        """Number of parameters, the embedding table included."""
        tables = self.vocabulary * self.width + (2 * self.layers + 1) * self.width
        return sum(a * b for a, b in self.matrices()) + tables


PAPER = (
    Transformer("1.3 B", 2048, 24, 5632, 32000),
    Transformer("10 B", 4608, 36, 12288, 50000),
)


def on_paper(model: Transformer, ranks: int) -> list[str]:
    """Return the rows of one model: bytes that a rank sends per step, beside those of fully_shard itself."""
    share = (ranks - 1) / ranks
    shapes = model.matrices()
    parameters, in_matrices = model.parameters(), sum(a * b for a, b in shapes)
    vectors = 2 * model.layers + 2
    entries = sum(a + b for a, b in shapes) + model.vocabulary + model.width + vectors * model.width
    tensors = len(shapes) + vectors
    deciding = 4 * (len(QUANTITIES) * entries + len(SCALARS) * tensors)
    statistics = (deciding + (STEPS - 1) * 4 * tensors) / STEPS + 4 * 2 * vectors
    owners = share_out(
        [orthogonalisation_cost(MatrixLayout((0,), (1,), (), shape)) for shape in shapes], ranks
    )
    costs = [orthogonalisation_cost(MatrixLayout((0,), (1,), (), shape)) for shape in shapes]
    held, loads = Counter(), Counter()
    for owner, (a, b), cost in zip(owners, shapes, costs, strict=True):
        held[owner] += a * b
        loads[owner] += cost
    fsdp = 3 * share * 2 * parameters  # two all-gathers and a reduce-scatter, in bfloat16
    local = in_matrices / ranks
    # Slices out and directions back: what it sends of others' matrices and of its own, at float32.
    busiest = 4 * share * (local + max(held.values()))
    gathered = 4 * share * in_matrices
    rows = []
    for label, collectives, sent, work in (
        ("AdamW", "0", 0.0, "0"),
        ("Muon, every rank gathers every matrix", f"{len(shapes)}", gathered, "1"),
        ("nfopt", "6", 2 * share * statistics + busiest, f"{max(loads.values()) / sum(costs):.4f}"),
    ):
        rows.append(
            f"| {model.name} ({parameters:,}) | {ranks} | {label} | {collectives} | {sent / 1e6:,.0f} | "
            f"{sent / fsdp:.1%} | {work} |"
        )
    return rows


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--model", action="append", choices=sorted(MODELS))
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    if options.measure:
        print("| model (parameters) | ranks | optimizer | collectives | bytes sent / parameter | which |")
        print("|---|---|---|---|---|---|", flush=True)
        for name in options.model or ["mlp", "vit-tiny"]:
            on_ranks(options.ranks, count_on_rank, name)
        return
    columns = ("model", "ranks", "optimizer", "collectives", "MB sent by the busiest rank")
    columns = (*columns, "of what fully_shard sends", "its share of all orthogonalisation")
    print(f"| {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|---|")
    for model in PAPER:
        for ranks in (8, 64, 256, 1024):
            print("\n".join(on_paper(model, ranks)))


if __name__ == "__main__":
    main()
