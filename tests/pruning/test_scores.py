"""Every score against a case that is computed by hand, in float64."""

import pytest
import torch
from torch import nn

from nfopt.pruning import SCORES, ScoreContext


def one_neuron(weights):
    model = nn.Linear(len(weights), 1, bias=False, dtype=torch.float64)
    model.weight.data = torch.tensor([weights], dtype=torch.float64)
    return model


def squared_error(outputs, targets):
    return (outputs.squeeze(1) - targets).square().mean()


def context(model, batches=(), **given):
    parameters = {name: p for name, p in model.named_parameters() if name.endswith("weight")}
    kept = {name: torch.ones(p.shape, dtype=torch.bool) for name, p in parameters.items()}
    return ScoreContext(
        model, parameters, kept, torch.Generator().manual_seed(0), batches, squared_error, **given
    )


def batch(*rows, target):
    return torch.tensor(rows, dtype=torch.float64), torch.tensor(target, dtype=torch.float64)


def compute(name, case):
    return {key: value.detach() for key, value in SCORES[name].compute(case).items()}


def test_snip_is_the_gradient_of_the_mean_loss_times_the_weight():
    # w x = 3 - 2 = 1, so that g = 2 x = (2, 4).
    case = context(one_neuron([3.0, -1.0]), [batch([1.0, 2.0], target=[0.0])])
    assert compute("snip", case)["weight"].tolist() == [[6.0, 4.0]]


def test_gradients_of_opposite_sign_cancel_for_snip_and_not_for_taylor():
    # The second batch has g = 2 (1 - 2) x = (-2, -4).
    both = [batch([1.0, 2.0], target=[0.0]), batch([1.0, 2.0], target=[2.0])]
    case = context(one_neuron([3.0, -1.0]), both)
    assert compute("snip", case)["weight"].tolist() == [[0.0, 0.0]]
    assert compute("taylor", case)["weight"].tolist() == [[36.0, 16.0]]


def test_grasp_is_the_weight_times_the_hessian_times_the_gradient_of_the_softened_loss():
    rows = [([1.0, 2.0], 0.5), ([-3.0, 1.0], 2.0)]
    weights, a = [3.0, 1.0], 1 / 200
    x = [row for row, _ in rows]
    # L = mean (a w x - t)^2: g = mean 2 a (a w x - t) x, H = mean 2 a^2 x x'.
    errors = [a * (weights[0] * row[0] + weights[1] * row[1]) - t for row, t in rows]
    g = [sum(2 * a * e * row[i] for e, row in zip(errors, x, strict=True)) / 2 for i in (0, 1)]
    h = [[sum(2 * a * a * row[i] * row[j] for row in x) / 2 for j in (0, 1)] for i in (0, 1)]
    expected = [weights[i] * (h[i][0] * g[0] + h[i][1] * g[1]) for i in (0, 1)]
    case = context(one_neuron(weights), [batch(row, target=[t]) for row, t in rows])
    assert compute("grasp", case)["weight"].squeeze().tolist() == pytest.approx(expected, rel=1e-12)
    assert any(value < 0 for value in expected)


def test_grasp_predicts_how_removing_a_weight_changes_the_squared_gradient_norm():
    """Here by finite differences along a small part of the removal."""
    weights = torch.tensor([3.0, -1.0], dtype=torch.float64)
    batches = [batch([1.0, 2.0], target=[0.5]), batch([-3.0, 1.0], target=[2.0])]

    def squared_norm(w):
        model = one_neuron(w.tolist())
        loss = torch.stack([squared_error(model(x) / 200, t) for x, t in batches]).mean()
        (gradient,) = torch.autograd.grad(loss, model.weight)
        return gradient.square().sum()

    worth = compute("grasp", context(one_neuron(weights.tolist()), batches))["weight"].squeeze()
    for i in (0, 1):
        step = torch.zeros(2, dtype=torch.float64)
        step[i] = -1e-4 * weights[i]
        change = (squared_norm(weights + step) - squared_norm(weights - step)) / 2e-4
        assert change.item() == pytest.approx(-2 * worth[i].item(), rel=1e-6)


def two_layers():
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, -2.0], [0.0, 3.0], [-1.0, -1.0]])
    model[2].weight.data = torch.tensor([[2.0, -1.0, 5.0]])
    return model


def test_synflow_is_the_flow_through_each_absolute_weight():
    found = compute("synflow", context(two_layers(), example_inputs=torch.zeros(7, 2)))
    assert found["0.weight"].tolist() == [[2.0, 4.0], [0.0, 3.0], [5.0, 5.0]]
    assert found["2.weight"].tolist() == [[2 * 3.0, 1 * 3.0, 5 * 2.0]]


def test_synflow_is_conserved_from_layer_to_layer():
    found = compute("synflow", context(two_layers(), example_inputs=torch.zeros(7, 2)))
    assert found["0.weight"].sum() == found["2.weight"].sum() == 19.0
    assert torch.equal(found["0.weight"].sum(1), found["2.weight"].squeeze(0))


def test_synflow_does_not_see_what_a_running_mean_subtracts():
    model = nn.Sequential(nn.Conv2d(3, 5, 1, bias=False), nn.BatchNorm2d(5), nn.ReLU())
    before = compute("synflow", context(model, example_inputs=torch.zeros(1, 3, 2, 2)))["0.weight"]
    model[1].running_mean.fill_(100.0)
    after = compute("synflow", context(model, example_inputs=torch.zeros(1, 3, 2, 2)))["0.weight"]
    assert torch.equal(before, after) and before.sum() > 0


def test_magnitude_is_the_absolute_weight_and_chance_depends_on_the_generator_alone():
    assert compute("magnitude", context(one_neuron([3.0, -4.0])))["weight"].tolist() == [[3.0, 4.0]]
    first, second = (compute("random", context(one_neuron([v, v]))) for v in (1.0, 2.0))
    assert torch.equal(first["weight"], second["weight"])


def test_imp_is_the_magnitude_that_training_leaves():
    def train(model, kept):
        assert kept["weight"].all()
        with torch.no_grad():
            model.weight.mul_(torch.tensor([-2.0, 0.5]))

    assert compute("imp", context(one_neuron([3.0, -4.0]), train=train))["weight"].tolist() == [[6.0, 2.0]]
