"""The baselines of pytorch-optimizer: they train, resume to the bit, and say how to be installed."""

import sys

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from nfopt.data import ImageData, Split
from nfopt.errors import RecipeError
from nfopt.recipe.optimizers import OptimizerChoice
from nfopt.training import TrainingConfig, train

CHOICE = TypeAdapter(OptimizerChoice)
CONFIG = TrainingConfig(total_steps=31, batch_size=7, evaluate_every=5, save_every_s=0.0)
NAMES = ["soap", "schedule_free"]


class StopHereError(Exception):
    """Stands for a kill in the middle of a training."""


def some_data():
    images = torch.randn(47, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    labels = (images.flatten(1).sum(1) > 0).long()
    return ImageData(
        "toy",
        Split(images[:31], labels[:31]),
        Split(images[31:40], labels[31:40]),
        Split(images[40:], labels[40:]),
        2,
    )


def fresh(name, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    chosen = CHOICE.validate_python({"name": name, "lr": 0.05} | options)
    return model, some_data(), chosen.build(model, (torch.zeros(2, 1, 2, 3),), CONFIG.total_steps)


@pytest.mark.parametrize("name", NAMES)
def test_a_baseline_learns_and_goes_on_to_the_same_bits_after_a_stop(tmp_path, name):
    pytest.importorskip("pytorch_optimizer")
    whole = train(*fresh(name), CONFIG)
    assert whole.final["train"]["loss"] < 0.6 * whole.train_loss[0]

    def stop(progress):
        if progress.done == 15:
            raise StopHereError

    with pytest.raises(StopHereError):
        train(*fresh(name), CONFIG, state_file=tmp_path / "s", progress=stop)
    assert train(*fresh(name), CONFIG, state_file=tmp_path / "s") == whole


def test_how_often_schedule_free_is_looked_at_does_not_change_where_it_ends():
    pytest.importorskip("pytorch_optimizer")
    often, seldom = (
        train(*fresh("schedule_free"), TrainingConfig(31, 7, every, save_every_s=0.0)) for every in (1, 31)
    )
    assert often.final == seldom.final


def test_schedule_free_is_evaluated_at_its_average():
    pytest.importorskip("pytorch_optimizer")
    model, data, optimization = fresh("schedule_free", beta1=0.5)
    train(model, data, optimization, CONFIG)
    trained = model[1].weight.clone()
    with optimization.evaluating(model, data.train.images):
        assert not torch.equal(model[1].weight, trained)
    assert torch.equal(model[1].weight, trained)


@pytest.mark.parametrize("name", NAMES)
def test_an_absent_library_is_an_error_that_says_how_to_install_it(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    options = CHOICE.validate_python({"name": name})
    with pytest.raises(RecipeError, match=r"pip install 'nfopt\[bench\]'"):
        options.check_installed()
    with pytest.raises(RecipeError, match=r"pip install 'nfopt\[bench\]'"):
        options.build(nn.Linear(3, 5), (torch.ones(2, 3),), 7)
