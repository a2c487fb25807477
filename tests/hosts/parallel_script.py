"""A training script under accelerate, for any number of processes:

torchrun --nproc-per-node=2 --no-python python -m tests.hosts.parallel_script FOLDER
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from nfopt import NFOptimizer
from tests.hosts.models import INPUTS, RULE, TARGETS, mlp

STEPS = 6


def train(rank: int, processes: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Train on this process's share of every batch, in float64, and return the weights."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=1)
    bare = mlp(seed).double()
    optimizer = NFOptimizer(bare, total_steps=STEPS, checkpoint=RULE)
    model, prepared = accelerator.prepare(bare, optimizer)
    # accelerate steps it once per process and step: a schedule is no measure of the optimizer's progress.
    scheduler = accelerator.prepare(LambdaLR(optimizer, lambda step: 1 / (1 + step // processes)))
    inputs, targets = INPUTS.double()[rank::processes], TARGETS[rank::processes]
    for _ in range(STEPS):
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.cross_entropy(model(inputs), targets))
            accelerator.clip_grad_norm_(model.parameters(), 0.5)
            prepared.step()
            scheduler.step()
            prepared.zero_grad()
    assert optimizer.param_groups[0]["steps_taken"] == STEPS
    assert [atom.size for atom in optimizer.spec.groups.values()] == [7, 11]
    return {name: value.detach().clone() for name, value in bare.named_parameters()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    state = Accelerator(cpu=True).state
    trained = train(state.process_index, state.num_processes, seed=state.process_index)
    save_file(trained, Path(sys.argv[1]) / f"rank{state.process_index}.safetensors")
    torch.distributed.destroy_process_group()
