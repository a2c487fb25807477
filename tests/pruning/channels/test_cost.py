import torch
from torch import nn

from nfopt.pruning import cost_of, latencies


def test_macs_are_products_of_a_linear_map_and_of_a_convolution():
    assert cost_of(nn.Linear(5, 7), torch.zeros(3, 5)).macs == 3 * 5 * 7
    conv = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    cost = cost_of(conv, torch.zeros(2, 3, 7, 11))
    assert cost.macs == 2 * 7 * 11 * 5 * 3 * 9
    assert cost.parameters == 5 * 3 * 9


def test_measuring_leaves_mode_and_statistics_alone():
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7).eval())
    cost_of(model, torch.randn(3, 5))
    seconds = latencies((model, model), torch.randn(3, 5), rounds=2)
    assert len(seconds) == 2 and min(seconds) > 0
    assert model.training and not model[1].training
    assert int(model[1].num_batches_tracked) == 0


class ClassToken(nn.Module):
    """Hands a parameter that is repeated for every example to a layer."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 5))
        self.layer = nn.Linear(5, 7)

    def forward(self, x):
        return self.layer(self.token.expand(len(x), -1)) + self.layer(x)


def test_a_parameter_that_is_expanded_and_handed_to_a_layer_is_counted():
    assert cost_of(ClassToken(), torch.zeros(3, 5)).macs == 2 * 3 * 5 * 7
