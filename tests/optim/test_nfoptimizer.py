"""NFOptimizer as a torch optimizer: what a training script relies on."""

import copy
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nfopt.errors import OptimizerError, TraceError, UnknownNameError
from nfopt.optim import NFOptimizer, NfoptWarning
from nfopt.optim.moments import MOMENTA, SCALAR_STATE, SLOW
from tests.optim.loops import INPUTS, TARGETS, backward, build, same, take_steps, weights
from tests.optim.models import mlp, resnet


def test_it_trains() -> None:
    model = mlp()
    losses = take_steps(model, build(model, checkpoint="nominal", total_steps=200), 200)
    assert losses[-1] < 0.1 * losses[0]


def test_the_spec_comes_from_the_first_forward_and_equals_the_one_from_example_inputs() -> None:
    first, second = mlp(), mlp()
    noted, given = build(first), build(second, example_inputs=INPUTS)
    assert same_after_steps(first, noted, second, given)
    assert noted.spec == given.spec
    assert [atom.size for atom in noted.spec.groups.values()] == [7, 11]


def same_after_steps(first: nn.Module, a: NFOptimizer, second: nn.Module, b: NFOptimizer) -> bool:
    take_steps(first, a, 3)
    take_steps(second, b, 3)
    return same(weights(first), weights(second))


def test_the_first_forward_is_seen_through_torch_compile_and_ddp_style_wrappers() -> None:
    model, plain = mlp(), mlp()
    wrapped = torch.compile(model, backend="eager")
    optimizer = build(wrapped)
    assert optimizer.param_groups[0]["param_names"] == [n for n, _ in plain.named_parameters()]
    take_steps(wrapped, optimizer, 3)
    take_steps(plain, other := build(plain), 3)
    assert optimizer.spec == other.spec
    assert same(weights(model), weights(plain))


def test_bare_parameters_train_uncoupled_and_say_so_once() -> None:
    model = mlp()
    optimizer = build(model.parameters())
    with pytest.warns(NfoptWarning, match="on its own") as caught:
        take_steps(model, optimizer, 3)
    assert len(caught) == 1


def test_a_step_without_any_forward_trains_uncoupled_and_says_why() -> None:
    model = mlp()
    optimizer = build(model)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    with pytest.warns(NfoptWarning, match="no forward pass"):
        optimizer.step()


def test_bare_parameters_with_their_model_are_coupled() -> None:
    first, second = mlp(), mlp()
    groups = [
        {"params": second[0].parameters()},
        {"params": [*second[2].parameters(), *second[4].parameters()]},
    ]
    assert same_after_steps(first, build(first), second, build(groups, model=second))


class Gated(nn.Module):
    """Takes positional and keyword arguments, as transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, inputs: Tensor, scale: Tensor | None = None, **extra: Any) -> Tensor:
        hidden = torch.relu(self.inner(inputs)) * extra["gate"]
        return self.outer(hidden if scale is None else hidden * scale)


@pytest.mark.parametrize("by_name", [True, False])
def test_inputs_by_position_and_by_keyword_are_noted_alike(by_name: bool) -> None:
    model = Gated()
    optimizer = build(model)
    options = {"scale": torch.ones(13, 1), "gate": torch.ones(())}
    outputs = model(inputs=INPUTS, **options) if by_name else model(INPUTS, **options)
    nn.functional.cross_entropy(outputs, TARGETS).backward()
    optimizer.step()
    assert [atom.size for atom in optimizer.spec.groups.values()] == [7]


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.abs().sum() == 0:
            raise ValueError("refuses zeros")
        return self.linear(inputs)


def test_a_model_that_cannot_be_traced_trains_uncoupled_or_fails_when_asked_explicitly() -> None:
    model = Untraceable()
    optimizer = build(model)
    with pytest.warns(NfoptWarning, match="could not be traced"):
        take_steps(model, optimizer, 1)
    with pytest.raises(TraceError):
        build(Untraceable(), example_inputs=torch.randn(13, 7))


@pytest.mark.parametrize("steps_before", [0, 1, 5])
@pytest.mark.parametrize("how", ["torch.save", "safetensors"])
def test_resuming_is_bit_exact(steps_before: int, how: str, tmp_path: Path) -> None:
    straight = mlp()
    optimizer = build(straight)
    take_steps(straight, optimizer, steps_before)
    saved_weights = copy.deepcopy(straight.state_dict())
    saved = optimizer.state_dict()
    if how == "torch.save":
        buffer = io.BytesIO()
        torch.save(saved, buffer)
        buffer.seek(0)
        saved = torch.load(buffer, weights_only=True)
    else:
        flat = {f"{i}/{k}": v for i, state in saved["state"].items() for k, v in state.items()}
        save_file(flat, tmp_path / "state.safetensors")
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in load_file(tmp_path / "state.safetensors").items():
            state.setdefault(int(key.split("/")[0]), {})[key.split("/")[1]] = value
        saved = {"state": state, "param_groups": copy.deepcopy(saved["param_groups"])}

    resumed = mlp(seed=1)
    resumed.load_state_dict(saved_weights)
    other = build(resumed)
    other.load_state_dict(saved)
    take_steps(straight, optimizer, 6)
    take_steps(resumed, other, 6)
    assert same(weights(straight), weights(resumed))


def test_half_precision_state_survives_loading_in_its_own_dtype() -> None:
    model = mlp().bfloat16()
    optimizer = build(model)
    take_steps(model, optimizer, 3)
    other = build(copy.deepcopy(model))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for mine, theirs in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert mine[SLOW].dtype == theirs[SLOW].dtype == torch.float32
        assert mine.keys() == theirs.keys() >= {*MOMENTA, *SCALAR_STATE}
        assert all(torch.equal(mine[k], theirs[k]) for k in mine)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_train(dtype: torch.dtype) -> None:
    model = mlp().to(dtype)
    losses = take_steps(model, build(model, checkpoint="nominal", total_steps=100), 100)
    assert losses[-1] < 0.2 * losses[0]
    assert all(p.dtype == dtype for p in model.parameters())


def test_lr_multiplies_the_step() -> None:
    moved = []
    for lr in (1.0, 0.25):
        model = mlp()
        before = weights(model)
        take_steps(model, build(model, lr=lr), 1)
        moved.append([a - b for a, b in zip(weights(model), before, strict=True)])
    assert all(torch.allclose(0.25 * full, part, atol=1e-7) for full, part in zip(*moved, strict=True))


def test_groups_have_their_own_lr_and_weight_decay() -> None:
    model = mlp()
    before = weights(model)
    named = list(model.named_parameters())
    optimizer = build(
        [{"params": named[:2], "lr": 0.0}, {"params": named[2:], "weight_decay": 0.0}], model=model
    )
    take_steps(model, optimizer, 2)
    after = weights(model)
    assert same(after[:2], before[:2])
    assert not any(torch.equal(a, b) for a, b in zip(after[2:], before[2:], strict=True))


def test_weight_decay_shrinks_matrices_only() -> None:
    decayed, plain = mlp(), mlp()
    take_steps(decayed, build(decayed, weight_decay=5.0), 1)
    take_steps(plain, build(plain, weight_decay=0.0), 1)
    for start, with_decay, without in zip(weights(mlp()), weights(decayed), weights(plain), strict=True):
        shrink = (without - with_decay).flatten() @ start.flatten() / start.square().sum()
        assert (float(shrink) > 1e-6) is (start.dim() == 2)


@pytest.mark.parametrize("total_steps", [None, 20])
def test_weight_decay_is_eased_only_where_an_end_is_given(total_steps: int | None) -> None:
    decayed, plain = mlp(), mlp()
    for model, decay in ((decayed, 5.0), (plain, 0.0)):
        optimizer = build(model, weight_decay=decay, total_steps=total_steps, checkpoint="nominal")
        take_steps(model, optimizer, 1)
    share = 0.025 * 5.0 * optimizer.schedule.factor(0)
    if total_steps is not None:
        share *= 1 - 0.7 * (1 - 1 / 800)
    start, with_decay, without = (weights(model)[0] for model in (mlp(), decayed, plain))
    assert torch.allclose(without - with_decay, share * start, rtol=1e-2, atol=1e-6)


def test_an_outside_scheduler_drives_lr_and_leaves_the_progress_alone() -> None:
    model = mlp()
    optimizer = build(model, total_steps=None)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for step in range(3):
        assert optimizer.param_groups[0]["lr"] == 0.5**step
        take_steps(model, optimizer, 1)
        scheduler.step()


def test_a_closure_is_called_with_gradients_enabled_and_its_loss_returned() -> None:
    first, second = mlp(), mlp()
    optimizer = build(first)
    loss = optimizer.step(lambda: backward(first, optimizer).detach())
    take_steps(second, build(second), 1)
    assert float(loss) > 0
    assert same(weights(first), weights(second))


def test_zero_grad_forgets_gradients_and_a_step_without_any_does_nothing() -> None:
    model = mlp()
    optimizer = build(model)
    backward(model, optimizer)
    optimizer.zero_grad()
    before = weights(model)
    optimizer.step()
    assert same(before, weights(model))
    assert not optimizer.state


def test_frozen_parameters_and_those_without_gradient_stay_and_join_later() -> None:
    model = mlp()
    model[0].requires_grad_(False)
    optimizer = build(model)
    before = weights(model)
    take_steps(model, optimizer, 2)
    assert same(before[:2], weights(model)[:2])
    model[0].requires_grad_(True)
    take_steps(model, optimizer, 1)
    assert not torch.equal(before[0], model[0].weight)
    assert int(optimizer.state[model[0].weight]["step"]) == 1
    assert int(optimizer.state[model[2].weight]["step"]) == 3


def test_sparse_gradients_train_like_dense_ones() -> None:
    results = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(11, 5, sparse=sparse), nn.Linear(5, 3))
        optimizer = build(model)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.arange(7)), TARGETS[:7]).backward()
            optimizer.step()
        results.append(weights(model))
    assert same(*results)


def test_tied_weights_are_one_parameter() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    model[2].weight = model[0].weight
    optimizer = build(model)
    assert len(optimizer.param_groups[0]["params"]) == 3
    take_steps(model, optimizer, 2)


def test_past_its_end_it_goes_on_at_the_final_step_size_and_says_so_once() -> None:
    model = mlp()
    optimizer = build(model, total_steps=3)
    take_steps(model, optimizer, 3)
    with pytest.warns(NfoptWarning, match="past its total_steps=3") as caught:
        take_steps(model, optimizer, 3)
    assert len(caught) == 1


def test_a_nan_gradient_skips_the_step_warns_and_is_counted() -> None:
    model = mlp()
    optimizer = build(model)
    take_steps(model, optimizer, 2)
    before, state = weights(model), copy.deepcopy(optimizer.state_dict()["state"])
    backward(model, optimizer)
    model[2].weight.grad[1, 1] = float("nan")
    with pytest.warns(NfoptWarning, match=r"skipped 1 step.*2\.weight"):
        optimizer.step()
    assert same(before, weights(model))
    assert all(
        torch.equal(state[i][k], s[k]) for i, s in enumerate(optimizer.state.values()) for k in MOMENTA
    )
    assert optimizer.guard_report().skipped == 1
    take_steps(model, optimizer, 1)
    assert not same(before, weights(model))


def test_a_first_step_at_zero_learning_rate_only_creates_the_state() -> None:
    """Distributed checkpointing does this before it loads: lr 0, zero gradients, step(closure=None)."""
    model, plain = mlp(), mlp()
    optimizer = build(model, lr=0.0)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step(closure=None)
    optimizer.zero_grad()
    assert len(optimizer.state) == 6
    for group in optimizer.param_groups:
        group["lr"] = 1.0
    take_steps(model, optimizer, 3)
    take_steps(plain, build(plain), 3)
    assert same(weights(model), weights(plain))


def test_a_parameter_group_added_later_joins_at_the_current_progress() -> None:
    model, extra = mlp(), nn.Linear(3, 3)
    optimizer = build(model)
    take_steps(model, optimizer, 2)
    optimizer.add_param_group({"params": list(extra.parameters())})
    both = nn.Sequential(model, extra)
    take_steps(both, optimizer, 2)
    assert all(group["steps_taken"] == 4 for group in optimizer.param_groups)
    assert not torch.equal(extra.weight.grad, torch.zeros(3, 3))
    assert int(optimizer.state[extra.weight]["step"]) == 2


def test_zero_size_and_scalar_parameters_are_no_trouble() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.empty, self.scale = nn.Parameter(torch.zeros(0, 5)), nn.Parameter(torch.tensor(1.0))
            self.linear = nn.Linear(5, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.linear(inputs) * self.scale + self.empty.sum()

    model = Odd()
    take_steps(model, build(model), 3)
    assert model.scale != 1.0


def test_deepcopied_models_and_optimizers_go_on_alike() -> None:
    model = mlp()
    optimizer = build(model)
    take_steps(model, optimizer, 2)
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    take_steps(model, optimizer, 2)
    take_steps(twin, twin_optimizer, 2)
    assert same(weights(model), weights(twin))


def test_the_users_model_keeps_no_hook_and_its_mode() -> None:
    model = resnet().train()
    optimizer = build(model)
    nn.functional.cross_entropy(model(torch.randn(13, 3, 6, 6)), TARGETS).backward()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    optimizer.step()
    assert not model._forward_pre_hooks
    assert model.training
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


# Bad input


def test_complex_parameters_are_refused() -> None:
    with pytest.raises(OptimizerError, match="complex64"):
        build([nn.Parameter(torch.zeros(3, dtype=torch.complex64))])


def test_flat_partitions_are_refused() -> None:
    """ZeRO replaces the parameters of a group by one flat slice of all of them."""
    model = mlp()
    optimizer = build(model)
    flat = nn.Parameter(torch.cat([p.detach().flatten() for p in model.parameters()]))
    flat.grad = torch.zeros_like(flat)
    optimizer.param_groups[0]["params"] = [flat]
    with pytest.raises(OptimizerError, match="flat partitions"):
        optimizer.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": 0}, "total_steps"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"weight_decay": -0.1}, "weight_decay"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptimizerError, match=message):
        build(mlp(), **options)


def test_no_parameters_and_doubled_names_are_refused() -> None:
    with pytest.raises(OptimizerError, match="empty parameter list"):
        build([])
    linear, other = nn.Linear(5, 3), nn.Linear(5, 3)
    with pytest.raises(OptimizerError, match="occurs twice"):
        build([{"params": [("w", linear.weight)]}, {"params": [("w", other.weight)]}])


def test_an_unknown_checkpoint_names_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="unknown checkpoint 'defualt'"):
        build(mlp(), checkpoint="defualt")


def test_wrong_example_inputs_are_a_clear_error() -> None:
    with pytest.raises(TraceError, match="shape"):
        build(mlp(), example_inputs=torch.randn(2, 6))


def test_ordinary_training_warns_of_nothing() -> None:
    model = mlp()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take_steps(model, build(model), 5)
