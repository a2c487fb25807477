import sys
import types

import pytest
import torch
from torch import nn

from nfopt.errors import UnknownNameError
from nfopt.models import MODELS, ModelError, build_model, check_model_name, named_model


@pytest.fixture
def own_module(monkeypatch):
    module = types.ModuleType("own_models")
    module.linear = lambda width=3: nn.Linear(width, 5)
    module.shaped = lambda in_shape, classes: nn.Sequential(nn.Flatten(), nn.Linear(in_shape[0], classes))
    module.with_inputs = lambda: (nn.Linear(3, 5), torch.zeros(7, 3))
    module.broken = lambda: "no module"
    module.number = 3
    monkeypatch.setitem(sys.modules, "own_models", module)


@pytest.mark.parametrize("name", [*MODELS, "resnet10t"])
def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_random_state_alone(name):
    before = torch.get_rng_state()
    first = build_model(name, (1, 32, 32), 7, seed=3)
    second = build_model(name, (1, 32, 32), 7, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_another_seed_gives_other_weights():
    first, second = build_model("mlp", (1, 3, 5), 7, seed=0), build_model("mlp", (1, 3, 5), 7, seed=1)
    assert not torch.equal(next(first.parameters()), next(second.parameters()))


@pytest.mark.parametrize("name", [*MODELS, "resnet10t"])
def test_a_model_by_name_has_the_asked_inputs_and_classes(name):
    named = named_model(name, (1, 32, 32), classes=7)
    assert named.module(*named.example_inputs).shape == (2, 7)


def test_without_an_input_shape_a_timm_model_gets_its_own():
    assert named_model("test_vit").example_inputs[0].shape == (2, 3, 160, 160)


def test_options_reach_the_model():
    model = build_model("mlp", (1, 3, 5), 7, options={"hidden": [11], "activation": "gelu"})
    assert [tuple(p.shape) for p in model.parameters()] == [(11, 15), (11,), (7, 11), (7,)]


def test_a_factory_of_ones_own_is_called_with_what_it_asks_for(own_module):
    assert named_model("own_models:linear", (3,)).module(torch.zeros(2, 3)).shape == (2, 5)
    assert build_model("own_models:shaped", (3,), 7)(torch.zeros(2, 3)).shape == (2, 7)
    assert named_model("own_models:with_inputs").example_inputs[0].shape == (7, 3)
    assert named_model("own_models:linear", (5,), options={"width": 5}).module.in_features == 5


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("resnet19", "Did you mean"),
        ("mpl", "'mlp'"),
        ("no_such_package:model", "cannot be imported"),
        (":model", "cannot be imported"),
        ("own_models:gone", "no callable 'gone'"),
        ("own_models:number", "no callable 'number'"),
    ],
)
def test_an_unknown_name_is_an_error_that_says_the_way_out(name, part, own_module):
    with pytest.raises(UnknownNameError, match=part):
        check_model_name(name)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", {"widths": [3]}),
        ("mlp", {"activation": "sine"}),
        ("resnet10t", {"widths": [3]}),
        ("own_models:linear", {"depth": 3}),
        ("own_models:broken", {}),
    ],
)
def test_options_that_do_not_fit_are_an_error(name, options, own_module):
    with pytest.raises(ModelError):
        build_model(name, (3,), 5, options=options)


def test_a_factory_without_inputs_of_its_own_needs_an_input_shape(own_module):
    with pytest.raises(ModelError, match="--input"):
        named_model("own_models:linear")
