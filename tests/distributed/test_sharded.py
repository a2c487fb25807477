"""Parameters sharded by fully_shard: the same training as on one process, whatever happens on a rank.

All quick checks share one start of two ranks, which is what takes the time.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from nfopt.optim.moments import SCALAR_STATE, SKIPPED, TENSOR_STATE
from nfopt.optim.spec_source import NfoptWarning
from nfopt.symmetry.trace import trace_permutation_spec
from tests.distributed.checkpointing import load, save
from tests.distributed.ranks import (
    TARGETS,
    build,
    convolutional,
    language,
    largest_difference,
    on_ranks,
    shard,
    train,
    weights,
)

Make = Callable[[], tuple[nn.Module, torch.Tensor]]


def goes_the_way_of_one_process(make: Make, steps: int = 20) -> None:
    alone, inputs = make()
    reference = build(alone)
    train(alone, inputs, reference, steps)
    model, _ = make()
    optimizer = build(shard(model))
    start = weights(model)
    train(model, inputs, optimizer, steps)
    assert largest_difference(weights(model), weights(alone)) < 1e-6
    assert largest_difference(weights(model), start) > 1e-2
    assert optimizer.spec == reference.spec
    for param, state in optimizer.state.items():
        assert isinstance(param, DTensor)
        for key in TENSOR_STATE:
            if key in state:
                assert state[key].placements == param.placements
                assert state[key].shape == param.shape
        assert not any(isinstance(state[key], DTensor) for key in SCALAR_STATE)


def a_spec_from_before_sharding_serves_as_well() -> None:
    model, inputs = language()
    before = trace_permutation_spec(model, inputs)
    optimizer = build(model, example_inputs=inputs)
    shard(model)
    sharded = build(model)
    assert optimizer.spec == before
    train(model, inputs, sharded, 1)
    assert sharded.spec == before


def nan_on_one_rank_skips_the_step_on_all() -> None:
    model, inputs = language()
    optimizer = build(shard(model))
    train(model, inputs, optimizer, 2)
    start = weights(model)
    nn.functional.cross_entropy(model(inputs), TARGETS).backward()
    if dist.get_rank() == 1:
        grad = model.head.weight.grad
        assert isinstance(grad, DTensor)
        grad.to_local()[0, 0] = float("nan")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step()
    assert [w.category for w in caught] == [NfoptWarning]
    assert largest_difference(weights(model), start) == 0
    assert all(int(state[SKIPPED]) == 1 for state in optimizer.state.values())
    train(model, inputs, optimizer, 1)
    assert largest_difference(weights(model), start) > 0


def a_rank_without_a_gradient_takes_it_for_zero() -> None:
    trained = []
    for missing in (None, 0):
        model, inputs = language()
        optimizer = build(shard(model))
        train(model, inputs, optimizer, 2)
        nn.functional.cross_entropy(model(inputs), TARGETS).backward()
        weight = model.head.weight
        assert isinstance(weight.grad, DTensor)
        if dist.get_rank() == 1:
            weight.grad = None if missing is None else torch.zeros_like(weight.grad)
        optimizer.step()
        trained.append(weights(model))
    assert largest_difference(*trained) == 0


def a_parameter_without_a_gradient_anywhere_stays() -> None:
    model, inputs = language()
    optimizer = build(shard(model))
    before = weights(model)["head.weight"]
    nn.functional.cross_entropy(model(inputs), TARGETS).backward()
    model.head.weight.grad = None
    optimizer.step()
    assert torch.equal(weights(model)["head.weight"], before)
    assert not optimizer.state[model.head.weight]


def a_parameter_added_later_joins(make: Make) -> None:
    ends = []
    for prepare in (lambda model: model, shard):
        model, inputs = make()
        prepare(model)
        late = model.head.weight
        optimizer = build([(n, p) for n, p in model.named_parameters() if p is not late], model=model)
        train(model, inputs, optimizer, 3)
        optimizer.add_param_group({"params": [("head.weight", late)]})
        train(model, inputs, optimizer, 3)
        ends.append(weights(model))
    assert largest_difference(*ends) < 1e-6


def copies_that_share_the_work_stay_equal(make: Make) -> None:
    alone, inputs = make()
    train(alone, inputs, build(alone), 10)
    model, _ = make()
    parallel = nn.parallel.DistributedDataParallel(model)
    train(parallel, inputs, build(parallel, share_work=True), 10)
    assert largest_difference(weights(model), weights(alone)) < 1e-9
    mine = torch.cat([w.flatten() for w in weights(model).values()])
    theirs = mine.clone()
    dist.broadcast(theirs, 0)
    assert torch.equal(mine, theirs)


def a_saved_training_goes_on_and_its_first_empty_step_is_inert(folder: str) -> None:
    model, inputs = language()
    optimizer = build(shard(model))
    train(model, inputs, optimizer, 3)
    save(folder, model, optimizer)
    train(model, inputs, optimizer, 3)
    other, _ = language()
    resumed = build(shard(other))
    load(folder, other, resumed)
    assert resumed.param_groups[0]["steps_taken"] == 3
    train(other, inputs, resumed, 3)
    assert largest_difference(weights(model), weights(other)) == 0


def quick_checks(folder: str) -> None:
    goes_the_way_of_one_process(language)
    a_spec_from_before_sharding_serves_as_well()
    nan_on_one_rank_skips_the_step_on_all()
    a_rank_without_a_gradient_takes_it_for_zero()
    a_parameter_without_a_gradient_anywhere_stays()
    a_parameter_added_later_joins(language)
    copies_that_share_the_work_stay_equal(language)
    a_saved_training_goes_on_and_its_first_empty_step_is_inert(folder)


def slow_checks() -> None:
    for make in (language, convolutional):
        goes_the_way_of_one_process(make)
        a_parameter_added_later_joins(make)
        copies_that_share_the_work_stay_equal(make)
    nan_on_one_rank_skips_the_step_on_all()


def test_two_ranks_train_sharded_as_one_process_does(tmp_path: Path) -> None:
    on_ranks(2, quick_checks, str(tmp_path / "saved"))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_all_kinds_of_layers_train_sharded_as_on_one_process(ranks: int) -> None:
    on_ranks(ranks, slow_checks)
