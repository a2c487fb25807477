"""Loading an optimizer's state: what fits is taken as it is, what does not is refused and changes nothing."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nfopt.errors import OptimizerError
from nfopt.optim import NFOptimizer
from tests.optim.loops import backward, build, same, take_steps, weights
from tests.optim.models import learned_checkpoint, mlp

State = dict[str, Any]


def saved(model: nn.Module | None = None, **options: Any) -> State:
    model = mlp(seed=1) if model is None else model
    optimizer = build(model, **options)
    take_steps(model, optimizer, 2)
    return copy.deepcopy(optimizer.state_dict())


def of_another_rule() -> State:
    return saved(checkpoint=learned_checkpoint(seed=1))


def of_adamw() -> State:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    take_steps(model, optimizer, 1)
    return optimizer.state_dict()


def of_fewer_layers() -> State:
    return saved(nn.Linear(5, 3))


def of_wider_layers() -> State:
    return saved(nn.Sequential(nn.Linear(5, 13), nn.ReLU(), nn.Linear(13, 11), nn.Tanh(), nn.Linear(11, 3)))


def in_two_groups() -> State:
    model = mlp()
    named = list(model.named_parameters())
    return saved_groups(model, [{"params": named[:2]}, {"params": named[2:]}])


def saved_groups(model: nn.Module, groups: list[State]) -> State:
    optimizer = build(groups, model=model)
    take_steps(model, optimizer, 1)
    return copy.deepcopy(optimizer.state_dict())


def changed(change: Callable[[State], object]) -> Callable[[], State]:
    def make() -> State:
        state = saved()
        change(state)
        return state

    return make


REFUSED = {
    "another rule": (of_another_rule, "belongs to the rule"),
    "another optimizer": (of_adamw, "not written by NFOptimizer"),
    "fewer layers": (of_fewer_layers, "2 parameters, the optimizer's 6"),
    "wider layers": (of_wider_layers, r"slow of 0\.weight is \(13, 5\), the parameter \(7, 5\)"),
    "two groups": (in_two_groups, "2, 4 parameters, the optimizer's 6"),
    "no groups": (changed(lambda s: s["param_groups"].clear()), "no parameters"),
    "no state": (changed(lambda s: s.pop("state")), "'state' and 'param_groups'"),
    "the last tensor's shape": (
        changed(lambda s: s["state"][5].update(second=torch.zeros(7))),
        r"second of 4\.bias is \(7,\)",
    ),
    "a lost momentum": (changed(lambda s: s["state"][3].pop("fast")), r"fast of 2\.bias is nothing"),
    "a lost scalar": (changed(lambda s: s["state"][3].pop("skipped")), r"skipped of 2\.bias is nothing"),
    "a number for a tensor": (changed(lambda s: s["state"][0].update(step=2)), r"step of 0\.weight is int"),
    "integers": (
        changed(lambda s: s["state"][5].update(slow=torch.zeros(3, dtype=torch.long))),
        "dtype torch.int64",
    ),
    "state of nobody": (changed(lambda s: s["state"].update({6: s["state"][5]})), "state for 6"),
    "no count of steps": (
        changed(lambda s: s["param_groups"][0].update(steps_taken=None)),
        "steps_taken of a group is None",
    ),
}


def everything(optimizer: NFOptimizer) -> tuple[list[dict[str, Tensor]], list[State]]:
    state = [{k: v.clone() for k, v in entry.items()} for entry in optimizer.state.values()]
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return state, copy.deepcopy(groups)


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_refused_state_leaves_the_optimizer_as_it_was(
    make: Callable[[], State], message: str, steps_before: int
) -> None:
    model, twin = mlp(), mlp()
    optimizer, other = build(model), build(twin)
    take_steps(model, optimizer, steps_before)
    take_steps(twin, other, steps_before)
    state, groups = everything(optimizer)
    with pytest.raises(OptimizerError, match=message):
        optimizer.load_state_dict(make())
    after, groups_after = everything(optimizer)
    assert len(after) == len(state) == (6 if steps_before else 0)
    assert all(torch.equal(a[k], b[k]) for a, b in zip(state, after, strict=True) for k in a.keys() | b)
    assert groups_after == groups
    assert all(a is b for a, b in zip(model.parameters(), optimizer.param_groups[0]["params"], strict=True))
    take_steps(model, optimizer, 2)
    take_steps(twin, other, 2)
    assert same(weights(model), weights(twin))


def test_a_state_in_another_order_is_refused_although_the_shapes_fit() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3))
    named = list(model.named_parameters())
    swapped = saved_groups(model, [{"params": named[2:4] + named[:2] + named[4:]}])
    with pytest.raises(OptimizerError, match=r"another order: number 0 is 1\.weight, here 0\.weight"):
        build(model).load_state_dict(swapped)


def test_what_is_no_dictionary_is_refused() -> None:
    with pytest.raises(OptimizerError, match="not a list"):
        build(mlp()).load_state_dict([])  # type: ignore[arg-type]


def test_a_state_of_parameters_without_names_is_taken_in_order_and_names_stay() -> None:
    named, bare = mlp(), mlp()
    optimizer = build(named)
    other = build(bare.parameters())
    with pytest.warns(UserWarning, match="on its own"):
        take_steps(bare, other, 2)
    optimizer.load_state_dict(other.state_dict())
    assert optimizer.param_groups[0]["param_names"] == [n for n, _ in named.named_parameters()]
    named.load_state_dict(bare.state_dict())
    take_steps(named, optimizer, 2)
    assert optimizer.param_groups[0]["steps_taken"] == 4


def test_hooks_of_the_user_rewrite_the_state_first_and_read_the_restored_one_last() -> None:
    model = mlp().bfloat16()
    optimizer = build(model)
    state = saved(mlp(seed=1).bfloat16())
    broken = {**state, "param_groups": []}
    optimizer.register_load_state_dict_pre_hook(lambda _, given: state)
    dtypes = []
    optimizer.register_load_state_dict_post_hook(
        lambda o: dtypes.extend(entry["slow"].dtype for entry in o.state.values())
    )
    optimizer.load_state_dict(broken)
    assert dtypes == [torch.float32] * 6
    assert optimizer.param_groups[0]["steps_taken"] == 2


def test_loading_copies_and_the_saved_state_stays_as_it_is() -> None:
    state = saved()
    kept = copy.deepcopy(state)
    model = mlp()
    optimizer = build(model)
    optimizer.load_state_dict(state)
    take_steps(model, optimizer, 2)
    assert all(
        torch.equal(state["state"][i][k], v) for i, entry in kept["state"].items() for k, v in entry.items()
    )


def test_a_state_from_before_the_guard_noted_steps_goes_on() -> None:
    state = saved()
    for entry in state["state"].values():
        del entry["first_intervention"], entry["last_intervention"]
    model = mlp()
    optimizer = build(model)
    optimizer.load_state_dict(state)
    take_steps(model, optimizer, 1)
    assert optimizer.guard_report().steps == 3
    assert optimizer.guard_report().last_step is None


def test_skips_of_before_a_resume_are_counted_but_not_warned_about_again() -> None:
    model = mlp()
    optimizer = build(model)
    backward(model, optimizer)
    model[0].weight.grad.fill_(float("inf"))
    with pytest.warns(UserWarning, match="skipped 1 step"):
        optimizer.step()
    other = build(model)
    other.load_state_dict(optimizer.state_dict())
    take_steps(model, other, 2)
    assert other.guard_report().skipped == 1
