"""NFOptimizer when things change under it: copies, groups, gradients that come and go, dtypes and devices."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from nfopt.errors import OptimizerError
from nfopt.optim import NfoptWarning
from nfopt.optim.moments import SLOW
from nfopt.optim.nfoptimizer import MOST_RULES
from tests.optim.loops import INPUTS, TARGETS, backward, build, same, take_steps, weights
from tests.optim.models import mlp

# Copies


@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_of_model_and_optimizer_goes_on_alike_and_apart(how: str, steps_before: int) -> None:
    model = mlp()
    optimizer = build(model)
    take_steps(model, optimizer, steps_before)
    pair = (model, optimizer)
    twin, twin_optimizer = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    before = weights(model)
    take_steps(twin, twin_optimizer, 2)
    assert same(weights(model), before)
    take_steps(model, optimizer, 2)
    assert same(weights(model), weights(twin))
    assert twin_optimizer.spec == optimizer.spec
    assert not model._forward_pre_hooks
    assert not twin._forward_pre_hooks


def test_a_copy_beside_a_scheduler_steps_itself_and_not_the_original() -> None:
    model = mlp()
    optimizer = build(model, total_steps=None)
    LambdaLR(optimizer, lambda step: 0.5**step)
    take_steps(model, optimizer, 1)
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    before, start = weights(model), weights(twin)
    take_steps(twin, twin_optimizer, 1)
    assert same(weights(model), before)
    assert not same(weights(twin), start)
    pickle.dumps(optimizer)


def test_a_copy_of_the_model_alone_trains_without_touching_the_optimizers_view() -> None:
    """Averaged weights are often a deep copy made before the first forward pass."""
    model = mlp()
    optimizer = build(model)
    average = copy.deepcopy(model)
    average(INPUTS)
    assert not average._forward_pre_hooks
    take_steps(model, optimizer, 1)
    assert [atom.size for atom in optimizer.spec.groups.values()] == [7, 11]


# Groups


def test_edits_of_a_groups_options_count_from_the_next_step() -> None:
    model = mlp()
    named = list(model.named_parameters())
    optimizer = build([{"params": named[:2]}, {"params": named[2:]}], model=model)
    take_steps(model, optimizer, 1)
    optimizer.param_groups[0]["lr"] = 0.0
    before = weights(model)
    take_steps(model, optimizer, 1)
    assert same(weights(model)[:2], before[:2])
    assert not torch.equal(weights(model)[2], before[2])


@pytest.mark.parametrize("option", ["lr", "weight_decay"])
def test_an_option_that_is_edited_to_nan_is_an_error_before_anything_moves(option: str) -> None:
    model = mlp()
    optimizer = build(model)
    take_steps(model, optimizer, 1)
    before, momentum = weights(model), optimizer.state[model[0].weight][SLOW].clone()
    optimizer.param_groups[0][option] = float("nan")
    with pytest.raises(OptimizerError, match=f"{option} of a parameter group is nan"):
        take_steps(model, optimizer, 1)
    assert same(weights(model), before)
    assert torch.equal(optimizer.state[model[0].weight][SLOW], momentum)
    assert optimizer.param_groups[0]["steps_taken"] == 1


def test_layers_that_join_by_a_group_of_their_own_are_coupled_by_their_model() -> None:
    model = mlp()
    optimizer = build(list(model[4].parameters()), model=model)
    take_steps(model, optimizer, 2)
    optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.5})
    take_steps(model, optimizer, 1)
    assert optimizer.param_groups[1]["param_names"] == ["2.weight", "2.bias"]
    assert [atom.size for atom in optimizer.spec.groups.values()] == [7, 11]
    assert int(optimizer.state[model[2].weight]["step"]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "lr is -0.1"),
        ({"lr": "fast"}, "lr is 'fast'"),
        ({"weight_decay": None}, "weight_decay is None"),
        ({"weight_decay": float("nan")}, "weight_decay is nan"),
    ],
)
def test_options_of_a_group_are_checked_and_a_refused_group_changes_nothing(
    options: dict[str, Any], message: str
) -> None:
    model = mlp()
    optimizer = build(list(model[0].parameters()), model=model)
    with pytest.raises(OptimizerError, match=message):
        optimizer.add_param_group({"params": list(model[2].parameters()), **options})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": list(model[2].parameters())})
    with pytest.raises(OptimizerError, match=message):
        build([{"params": list(model.parameters()), **options}], model=model)


def test_parameters_in_a_set_are_refused() -> None:
    with pytest.raises(OptimizerError, match="give a list"):
        build([{"params": set(mlp().parameters())}])


def test_a_tensor_learning_rate_counts_like_its_number() -> None:
    first, second = mlp(), mlp()
    take_steps(first, build(first, lr=0.5), 2)
    take_steps(second, build(second, lr=torch.tensor(0.5)), 2)
    assert same(weights(first), weights(second))


# Gradients


def test_a_step_with_no_gradients_at_all_takes_no_step_before_or_after_others() -> None:
    model, plain = mlp(), mlp()
    optimizer, other = build(model), build(plain)
    optimizer.step()
    assert optimizer.step(lambda: 7.0) == 7.0
    take_steps(model, optimizer, 1)
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    take_steps(model, optimizer, 1)
    take_steps(plain, other, 2)
    assert optimizer.param_groups[0]["steps_taken"] == 2
    assert same(weights(model), weights(plain))


def test_zero_gradients_are_a_step_that_leaves_vectors_and_stays_finite() -> None:
    model = mlp()
    optimizer = build(model, weight_decay=0.0)
    take_steps(model, optimizer, 2)
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    assert optimizer.param_groups[0]["steps_taken"] == 3
    fresh = mlp()
    before = weights(fresh)
    for param in fresh.parameters():
        param.grad = torch.zeros_like(param)
    optimizer = build(fresh, weight_decay=0.0, example_inputs=INPUTS)
    optimizer.step()
    assert same(before, weights(fresh))


def test_a_layer_that_is_frozen_later_stays_put_and_goes_on_when_thawed() -> None:
    model = mlp()
    optimizer = build(model)
    take_steps(model, optimizer, 2)
    model[2].requires_grad_(False)
    optimizer.zero_grad()
    frozen = weights(model[2])
    momentum = optimizer.state[model[2].weight][SLOW].clone()
    take_steps(model, optimizer, 2)
    assert same(weights(model[2]), frozen)
    assert torch.equal(optimizer.state[model[2].weight][SLOW], momentum)
    model[2].requires_grad_(True)
    take_steps(model, optimizer, 1)
    assert not same(weights(model[2]), frozen)
    assert int(optimizer.state[model[2].weight]["step"]) == 3
    assert int(optimizer.state[model[0].weight]["step"]) == 5


def test_a_skipped_step_is_said_and_counted_whichever_layers_have_gradients() -> None:
    model = mlp()
    optimizer = build(model)
    take_steps(model, optimizer, 1)
    for skips, layer in enumerate((0, 4), start=1):
        backward(model, optimizer)
        for other in {0, 2, 4} - {layer}:
            model[other].zero_grad(set_to_none=True)
        model[layer].bias.grad[0] = float("nan")
        with pytest.warns(NfoptWarning, match=rf"skipped {skips} step.*{layer}\.bias"):
            optimizer.step()
    report = optimizer.guard_report()
    assert (report.steps, report.skipped, report.first_step, report.last_step) == (3, 2, 2, 3)


def test_a_layer_that_joins_after_a_skip_does_not_hide_the_next_one() -> None:
    model = mlp()
    model[0].requires_grad_(False)
    optimizer = build(model)
    for skips in (1, 2):
        backward(model, optimizer)
        model[4].bias.grad[0] = float("inf")
        with pytest.warns(NfoptWarning, match=f"skipped {skips} step"):
            optimizer.step()
        model[0].requires_grad_(True)
    assert optimizer.guard_report().skipped == 2


class RandomDepth(nn.Module):
    """Every step another subset of the layers has a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5, bias=False) for _ in range(5))
        self.head = nn.Linear(5, 3)
        self.chosen = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for bit, layer in enumerate(self.layers):
            if self.chosen >> bit & 1:
                inputs = inputs + torch.relu(layer(inputs))
        return self.head(inputs)


def test_many_subsets_of_layers_with_gradients_are_not_all_kept_at_hand() -> None:
    model = RandomDepth()
    optimizer = build(model, total_steps=100)
    losses = []
    for chosen in range(2**5):
        model.chosen = chosen
        losses += take_steps(model, optimizer, 1)
    assert len(optimizer._rules) == MOST_RULES
    assert losses[-1] < losses[0]


# dtypes and devices


@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_that_changes_its_dtype_trains_on(dtype: torch.dtype, steps_before: int) -> None:
    model, plain = mlp(), mlp()
    optimizer, other = build(model), build(plain)
    take_steps(model, optimizer, steps_before)
    take_steps(plain, other, steps_before)
    model.to(dtype)
    take_steps(model, optimizer, 2)
    take_steps(plain, other, 2)
    work = torch.promote_types(dtype, torch.float32)
    assert all(v.dtype == work for entry in optimizer.state.values() for v in entry.values())
    tolerance = 0.15 if dtype == torch.bfloat16 else 5e-5  # float32 rounding, through two orthogonalisations
    for mine, theirs in zip(weights(model), weights(plain), strict=True):
        assert mine.dtype == dtype
        assert torch.allclose(mine.float(), theirs, atol=tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_that_moves_to_a_device_takes_its_state_along() -> None:
    model, plain = mlp(), mlp()
    optimizer, other = build(model), build(plain)
    take_steps(model, optimizer, 2)
    take_steps(plain, other, 3)
    model.cuda()
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(INPUTS.cuda()), TARGETS.cuda()).backward()
    optimizer.step()
    for mine, theirs in zip(weights(model), weights(plain), strict=True):
        assert torch.allclose(mine.cpu(), theirs, atol=1e-4)
