"""A rank that dies: the others say so, with nothing changed, and fewer ranks go on from the checkpoint."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from nfopt.errors import OptimizerError
from tests.distributed.checkpointing import load, save
from tests.distributed.ranks import (
    TARGETS,
    build,
    language,
    largest_difference,
    on_ranks,
    shard,
    train,
    weights,
)


def one_of_two_dies(folder: str) -> None:
    model, inputs = language()
    optimizer = build(shard(model))
    train(model, inputs, optimizer, 3)
    save(folder, model, optimizer)
    nn.functional.cross_entropy(model(inputs), TARGETS).backward()
    dist.barrier()
    if dist.get_rank() == 1:
        os._exit(0)  # as if it was killed: no word to the other
    state = optimizer.state[model.head.weight]["slow"].to_local().clone()
    before = [param.to_local().detach().clone() for param in model.parameters()]
    with pytest.raises(OptimizerError, match=r"a rank of the 2 .* changed nothing"):
        optimizer.step()
    assert all(torch.equal(p.to_local(), b) for p, b in zip(model.parameters(), before, strict=True))
    assert torch.equal(optimizer.state[model.head.weight]["slow"].to_local(), state)
    assert optimizer.param_groups[0]["steps_taken"] == 3
    (Path(folder) / "told").touch()
    os._exit(0)  # what else the ranks would say to each other at the end has no hearer


def the_other_goes_on_alone(folder: str) -> None:
    straight, inputs = language()
    train(straight, inputs, build(straight), 6)
    model, _ = language()
    optimizer = build(shard(model))
    load(folder, model, optimizer)
    train(model, inputs, optimizer, 3)
    assert largest_difference(weights(model), weights(straight)) < 1e-6


@pytest.mark.slow
def test_when_a_rank_dies_the_others_say_so_and_one_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    folder = str(tmp_path / "saved")
    on_ranks(2, one_of_two_dies, folder)
    assert (tmp_path / "saved" / "told").exists()
    on_ranks(1, the_other_goes_on_alone, folder)
