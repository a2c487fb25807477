"""Statistics, exchange and placements in a group of one, where the slice is the whole."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor
from torch.distributed.tensor import Shard as ShardPlacement

from nfopt.errors import OptimizerError
from nfopt.optim import LearnedUpdateRule, NFOptimizer
from nfopt.optim.sharded_statistics import Shard
from nfopt.optim.sharded_tensors import Distribution, as_unsharded, placed_like
from nfopt.symmetry import PermutationSpec
from tests.optim.models import learned_checkpoint

SHAPES = {"conv": (5, 3, 2, 2), "linear": (7, 5), "bias": (7,), "scalar": (), "depthwise": (5, 1, 3, 3)}
HALF = torch.tensor(0.5, dtype=torch.float64)


@pytest.fixture(autouse=True)
def alone(tmp_path) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}


@pytest.mark.parametrize("last", ["ordinary", "absurd", "nan"])
def test_one_reduction_gives_the_statistics_that_the_new_momenta_have(last: str) -> None:
    rule = LearnedUpdateRule(PermutationSpec.uncoupled(SHAPES))
    theta = {k: v.double() for k, v in learned_checkpoint().theta.items()}
    params, state = tensors(0), rule.init_state(tensors(0))
    params_of = [params[name] for name in rule.names]
    shards = [Shard.even(0, p.shape[0], 1) if p.dim() else None for p in params_of]
    mesh = init_device_mesh("cpu", (1,))
    placed = [distribute_tensor(p, mesh, [ShardPlacement(0) if p.dim() else Replicate()]) for p in params_of]
    holding = Distribution.of(placed).holding(
        rule.incidence.layouts, placed, rule.config.rates, rule.matrix_positions
    )
    assert holding is not None and list(holding.shards) == shards
    for step in range(14):
        grads = tensors(step + 1)
        if step == 13 and last != "ordinary":
            grads["linear"] *= 1e6 if last == "absurd" else float("nan")
        plain = rule.propose(theta, params, grads, state, HALF)
        sharded = rule.propose(theta, params, grads, state, HALF, holding=holding)
        for name in SHAPES:
            torch.testing.assert_close(sharded.updates[name], plain.updates[name], rtol=1e-9, atol=1e-12)
        state = plain.state


def test_a_whole_state_is_cut_when_its_parameter_has_become_sharded() -> None:
    mesh = init_device_mesh("cpu", (1,))
    whole = torch.randn(7, 5)
    param = distribute_tensor(torch.randn(7, 5), mesh, [ShardPlacement(0)])
    cut = placed_like(whole, param)
    assert isinstance(cut, DTensor)
    assert cut.placements == param.placements
    assert torch.equal(cut.full_tensor(), whole)
    assert placed_like(cut, param) is cut
    assert torch.equal(placed_like(cut, torch.zeros(7, 5)), whole)


def test_placements_that_rows_and_columns_are_lost_in_are_refused() -> None:
    grid = init_device_mesh("cpu", (1, 1))
    twice = distribute_tensor(torch.randn(7, 5), grid, [ShardPlacement(0), ShardPlacement(1)])
    summands = DTensor.from_local(torch.randn(7, 5), init_device_mesh("cpu", (1,)), [Partial()])
    for param in (twice, summands):
        with pytest.raises(OptimizerError, match="sharded along one dimension"):
            Distribution.of([param])


def test_a_replica_of_a_sharded_model_is_cut_among_its_own_ranks_only() -> None:
    grid = init_device_mesh("cpu", (1, 1))
    param = distribute_tensor(torch.randn(7, 5), grid, [Replicate(), ShardPlacement(1)])
    assert Distribution.of([param]).group is grid.get_group(1)


def test_a_plain_model_needs_no_ranks() -> None:
    assert Distribution.of([torch.zeros(3)]).group is None
    assert Distribution.of([torch.zeros(3)], share_work=True).group is None


def test_the_model_has_its_classes_and_state_back_after_a_copy() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    torch.distributed.fsdp.fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    kind, keys = type(model), set(model.__dict__)
    with as_unsharded(model):
        assert type(model) is nn.Sequential
    assert type(model) is kind
    assert set(model.__dict__) == keys


def test_a_sharded_model_trains_on_after_its_state_came_whole() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)), torch.randn(13, 5)
    bare = NFOptimizer(model, 20, checkpoint=learned_checkpoint(), example_inputs=inputs)
    model(inputs).square().mean().backward()
    bare.step()
    saved = bare.state_dict()
    torch.distributed.fsdp.fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    optimizer = NFOptimizer(model, 20, checkpoint=learned_checkpoint(), example_inputs=inputs)
    optimizer.load_state_dict(saved)
    model(inputs).square().mean().backward()
    optimizer.step()
    assert optimizer.param_groups[0]["steps_taken"] == 2
    assert all(isinstance(state["slow"], DTensor) for state in optimizer.state.values())
