"""Gloo ranks on this machine, and the training that they share."""

import os
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from nfopt import NFOptimizer
from tests.optim.models import learned_checkpoint, resnet

RULE = learned_checkpoint()
INPUTS = torch.randn(13, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
IMAGES = torch.randn(13, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.randint(3, (13,), generator=torch.Generator().manual_seed(1))
TOKENS = torch.randint(17, (13,), generator=torch.Generator().manual_seed(2))

Weights = dict[str, Tensor]


class Language(nn.Module):
    """A table of embeddings, which is no matrix to orthogonalise, and layers of odd and repeated widths."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(17, 5)
        self.layers = nn.Sequential(*(nn.Linear(5, 5) for _ in range(3)), nn.Linear(5, 7), nn.LayerNorm(7))
        self.head = nn.Linear(7, 3)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layers(torch.tanh(self.embedding(tokens))))) * self.scale


def language() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Language().double(), TOKENS


def convolutional() -> tuple[nn.Module, Tensor]:
    """Without the noise of BatchNorm's statistics, which differ between a batch and its parts."""
    return resnet().double().eval(), IMAGES


def build(params: Any, **options: Any) -> NFOptimizer:
    return NFOptimizer(params, **{"total_steps": 20, "checkpoint": RULE, **options})


def train(model: nn.Module, inputs: Tensor, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Take steps on the whole batch; where it is on every rank, means over ranks change nothing."""
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), TARGETS).backward()
        optimizer.step()


def shard(model: nn.Module) -> nn.Module:
    """Shard children and rest over all ranks, as fully_shard's users do."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for child in model.children():
        if any(True for _ in child.parameters()):
            fully_shard(child, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def weights(model: nn.Module) -> Weights:
    """Return the whole weights; every rank has to call this."""
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in model.named_parameters()
    }


def largest_difference(first: Weights, second: Weights) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def on_ranks(count: int, work: Callable[..., None], *arguments: Any) -> None:
    """Run `work` on `count` gloo ranks; what one of them raises is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_run, (count, str(Path(folder) / "store"), work, arguments), nprocs=count)


def _run(rank: int, count: int, store: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, count),
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=60),
    )
    work(*arguments)
    dist.barrier()
    dist.destroy_process_group()
    # Gloo's threads may still hold tensors: an interpreter that ends under them aborts, its work done.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
