import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import nn

from nfopt.recipe.optimizers import OPTIMIZERS, OptimizerChoice, schedule_factor

CHOICE = TypeAdapter(OptimizerChoice)
SHAPES = st.sampled_from(["constant", "linear", "cosine"])


@given(SHAPES, st.floats(0, 1), st.integers(1, 500))
def test_every_schedule_stays_within_0_and_1_rises_first_and_never_rises_again(shape, warmup, total_steps):
    factor = schedule_factor(shape, warmup, total_steps)
    values = [factor(step) for step in range(total_steps)]
    top = values.index(max(values))
    assert all(0 < value <= 1 for value in values)
    assert values[: top + 1] == sorted(values[: top + 1])
    assert values[top:] == sorted(values[top:], reverse=True)


@pytest.mark.parametrize(("shape", "end"), [("constant", 1.0), ("linear", 0.0), ("cosine", 0.0)])
def test_without_warmup_a_schedule_starts_at_1_and_ends_where_it_says(shape, end):
    factor = schedule_factor(shape, 0.0, 7)
    assert factor(0) == 1.0
    assert factor(7) == pytest.approx(end)


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_every_baseline_steps_and_follows_its_schedule(name):
    model = nn.Linear(3, 5)
    options = CHOICE.validate_python({"name": name, "lr": 0.1, "schedule": "linear"})
    optimization = options.build(model, (torch.ones(2, 3),), 4)
    before = model.weight.detach().clone()
    model(torch.ones(7, 3)).square().sum().backward()
    optimization.optimizer.step()
    optimization.scheduler.step()
    assert not torch.equal(before, model.weight)
    assert optimization.optimizer.param_groups[0]["lr"] == pytest.approx(0.075)


def test_nfopt_is_built_with_the_symmetry_traced_and_steps():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 7))
    options = CHOICE.validate_python({"name": "nfopt", "checkpoint": "nominal"})
    optimizer = options.build(model, (torch.ones(2, 3),), 11).optimizer
    assert [atom.size for atom in optimizer.spec.groups.values()] == [5]
    before = model[0].weight.detach().clone()
    model(torch.ones(7, 3)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, model[0].weight)


def test_nfopt_keeps_its_state_and_multiplies_in_the_dtypes_of_the_recipe():
    def trained(**options):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(11, 13), nn.ReLU(), nn.Linear(13, 7))
        choice = CHOICE.validate_python({"name": "nfopt", "checkpoint": "nominal", **options})
        optimizer = choice.build(model, (torch.ones(2, 11),), 11).optimizer
        model(torch.randn(17, 11)).square().sum().backward()
        optimizer.step()
        dtypes = {v.dtype for v in optimizer.state[model[0].weight].values() if v.shape == (13, 11)}
        return model[0].weight.detach(), dtypes

    weight, dtypes = trained()
    assert dtypes == {torch.float32}
    assert trained(state_dtype="bfloat16")[1] == {torch.bfloat16}
    other, _ = trained(matmul_dtype="bfloat16")
    assert not torch.equal(weight, other)
    torch.testing.assert_close(weight, other, atol=2e-3, rtol=0)


def test_options_come_back_from_their_json_values():
    options = CHOICE.validate_python({"name": "adamw", "tune": {"lr": [0.1, 0.2]}})
    assert CHOICE.validate_python(CHOICE.dump_python(options, mode="json")) == options


def test_the_candidates_are_all_combinations_in_order():
    options = CHOICE.validate_python({"name": "adamw", "tune": {"lr": [0.1, 0.2], "weight_decay": [0, 1]}})
    tried = [(candidate.lr, candidate.weight_decay) for candidate in options.candidates()]
    assert tried == [(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)]
    assert all(not candidate.tune for candidate in options.candidates())


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ({"name": "adamv"}, "Did you mean 'adamw'"),
        ({"lr": 1.0}, "with the name of an optimizer"),
        ("adamw", "with the name of an optimizer"),
        ({"name": "adamw", "learning_rate": 1.0}, "unknown key"),
        ({"name": "adamw", "lr": -1.0}, "greater than 0"),
        ({"name": "adamw", "lr": True}, "valid number"),
        ({"name": "adamw", "tune": {"lrs": [1.0]}}, "Did you mean 'lr'"),
        ({"name": "adamw", "tune": {"label": ["a"]}}, "unknown option to tune"),
        ({"name": "adamw", "tune": {"lr": [-1.0]}}, "greater than 0"),
        ({"name": "adamw", "tune": {"lr": []}}, "at least 1"),
        ({"name": "sgd", "beta1": 0.9}, "unknown key"),
    ],
)
def test_bad_options_are_faults(value, part):
    with pytest.raises(ValidationError, match=part):
        CHOICE.validate_python(value)


def test_every_optimizer_is_described():
    assert all(OPTIMIZERS[name].__doc__ for name in OPTIMIZERS)
