"""Resuming a sharded training from torch.distributed.checkpoint on another number of ranks."""

from pathlib import Path

import pytest

from tests.distributed.checkpointing import load, save
from tests.distributed.ranks import build, language, largest_difference, on_ranks, shard, train, weights


def begin(folder: str) -> None:
    model, inputs = language()
    optimizer = build(shard(model))
    train(model, inputs, optimizer, 3)
    save(folder, model, optimizer)


def go_on(folder: str) -> None:
    alone, inputs = language()
    train(alone, inputs, build(alone), 6)
    model, _ = language()
    optimizer = build(shard(model))
    load(folder, model, optimizer)
    assert optimizer.param_groups[0]["steps_taken"] == 3
    assert optimizer.param_groups[0]["lr"] == 1.0
    train(model, inputs, optimizer, 3)
    assert largest_difference(weights(model), weights(alone)) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2), (2, 1)])
def test_a_training_goes_on_with_another_number_of_ranks(before: int, after: int, tmp_path: Path) -> None:
    on_ranks(before, begin, str(tmp_path / "saved"))
    on_ranks(after, go_on, str(tmp_path / "saved"))
