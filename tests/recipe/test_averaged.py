"""Looking at Schedule-Free's average: the average is what is evaluated, and looking changes nothing."""

import pytest
import torch
from torch import nn

from nfopt.recipe.averaged import averaged_weights


class Doubling:
    """An optimizer whose average is twice the parameters, inexactly undone by train()."""

    def __init__(self, model):
        self._model = model

    @torch.no_grad()
    def _scale(self, factor):
        for parameter in self._model.parameters():
            parameter.mul_(factor)

    def eval(self):
        self._scale(2.0)

    def train(self):
        self._scale(0.5 + 1e-6)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 7)).double()


def test_inside_are_the_average_and_its_statistics_and_outside_all_is_as_it_was_to_the_bit():
    net, images = model(), torch.randn(11, 3, dtype=torch.float64)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with averaged_weights(Doubling(net))(net, images):
        assert torch.equal(net[0].weight, 2 * before["0.weight"])
        hidden = net[0](images)
        assert torch.allclose(net[1].running_mean, hidden.mean(0))
        assert torch.allclose(net[1].running_var, hidden.var(0))
        assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net[1].momentum == 0.1


def test_an_error_inside_restores_too():
    net = model()
    before = net[0].weight.clone()
    with pytest.raises(KeyError), averaged_weights(Doubling(net))(net, torch.ones(5, 3, dtype=torch.float64)):
        raise KeyError
    assert torch.equal(net[0].weight, before)


def test_a_model_without_batchnorm_is_not_run():
    net = nn.Linear(3, 5)
    with averaged_weights(Doubling(net))(net, torch.ones(2, 99)):
        pass
