import pytest
import torch
from torch import nn

from nfopt import NFOptimizer
from nfopt.errors import PruningError
from nfopt.pruning import apply_mask, keep_masked, prune
from tests.pruning.nets import batches, cnn, mlp

DATA = batches(4)


def nfoptimizer(parameters, model):
    return NFOptimizer(model, 20, example_inputs=(DATA[0][0],))


OPTIMIZERS = {
    "sgd": lambda p, m: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adamw": lambda p, m: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "adamax": lambda p, m: torch.optim.Adamax(p, lr=0.1),
    "rmsprop": lambda p, m: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, centered=True),
    "rprop": lambda p, m: torch.optim.Rprop(p, lr=0.1),
    "adadelta": lambda p, m: torch.optim.Adadelta(p, lr=0.1),
    "asgd": lambda p, m: torch.optim.ASGD(p, lr=0.1),
    "nfopt": nfoptimizer,
}


def loss_of(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def train(model, optimizer, steps=4):
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, DATA[step % len(DATA)]).backward()
        optimizer.step()


def elements(model, optimizer, name):
    """The weight, and every entry of its optimizer state that has its shape."""
    parameter = model.get_parameter(name)
    state = optimizer.state[parameter].values()
    return [parameter.detach(), *(v for v in state if torch.is_tensor(v) and v.shape == parameter.shape)]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_pruned_weights_and_all_their_momenta_are_exactly_zero_after_every_step(kind):
    model = mlp()
    optimizer = OPTIMIZERS[kind](model.parameters(), model)
    train(model, optimizer)  # with momentum before the mask comes
    mask = prune(model, 0.3)
    keep_masked(optimizer, model, mask)
    for _ in range(3):
        train(model, optimizer, 1)
        for name, kept in mask.kept.items():
            found = elements(model, optimizer, name)
            assert len(found) > 1
            assert all(bool((values[~kept] == 0).all()) for values in found)
            assert bool((found[0][kept] != 0).any())


def test_without_the_hook_momentum_revives_what_was_pruned():
    model = mlp()
    optimizer = OPTIMIZERS["sgd"](model.parameters(), model)
    train(model, optimizer)
    mask = prune(model, 0.3)
    with torch.no_grad():
        for name, kept in mask.kept.items():
            model.get_parameter(name).mul_(kept)
    train(model, optimizer, 1)
    assert any(bool((model.get_parameter(name)[~kept] != 0).any()) for name, kept in mask.kept.items())


def test_the_kept_weights_train_as_in_a_model_that_torch_masks():
    """The mask around the optimizer, and the mask in the forward pass: one trajectory, in float64."""
    data = batches(4, dtype=torch.float64)
    models = [mlp(dtype=torch.float64) for _ in range(2)]
    mask = prune(models[0], 0.3)
    apply_mask(models[1], mask)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.1) for m in models]
    keep_masked(optimizers[0], models[0], mask)
    for batch in data:
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
    outputs = [model(data[0][0]) for model in models]
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)


def test_gradients_are_masked_before_they_are_clipped_and_inside_closures():
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    mask = prune(model, 0.3)
    keep_masked(optimizer, model, mask)
    seen = []

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, DATA[0])
        loss.backward()
        seen.append({name: model.get_parameter(name).grad.clone() for name in mask.kept})
        return loss

    optimizer.step(closure)
    assert len(seen) > 1
    assert all(bool((grads[name][~kept] == 0).all()) for grads in seen for name, kept in mask.kept.items())
    assert all(bool((model.get_parameter(name)[~kept] == 0).all()) for name, kept in mask.kept.items())


class Turned(torch.optim.Optimizer):
    """Like SOAP: a first moment by element, a second one in coordinates that matrices turn."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            if not state:
                state["exp_avg"] = torch.ones_like(parameter)
                state["exp_avg_sq"] = torch.ones_like(parameter)
                state["Q"] = [torch.eye(n) for n in parameter.shape]
            parameter.data.add_(1.0)


def test_second_moments_in_turned_coordinates_are_left_alone():
    model = mlp()
    optimizer = Turned(model.parameters())
    mask = prune(model, 0.3)
    keep_masked(optimizer, model, mask)
    optimizer.step()
    state = optimizer.state[model[0].weight]
    kept = mask.kept["0.weight"]
    assert bool((state["exp_avg"] == kept).all())
    assert bool((state["exp_avg_sq"] == 1).all())
    assert bool((model[0].weight[~kept] == 0).all())


def test_a_new_mask_takes_effect_at_once_and_removal_ends_it():
    model = mlp()
    optimizer = OPTIMIZERS["adamw"](model.parameters(), model)
    handle = keep_masked(optimizer, model, prune(model, 0.6))
    train(model, optimizer)
    smaller = prune(model, 0.2, start=handle.mask)
    handle.set_mask(smaller)
    for name, kept in smaller.kept.items():
        assert all(bool((values[~kept] == 0).all()) for values in elements(model, optimizer, name))
    train(model, optimizer, 1)
    assert int(sum((model.get_parameter(name) != 0).sum() for name in smaller.kept)) == smaller.kept_count
    handle.remove()
    train(model, optimizer, 1)
    assert int(sum((model.get_parameter(name) != 0).sum() for name in smaller.kept)) > smaller.kept_count


def test_another_model_s_mask_is_refused_and_the_one_that_is_kept_goes_on():
    model = mlp()
    optimizer = OPTIMIZERS["adamw"](model.parameters(), model)
    handle = keep_masked(optimizer, model, prune(model, 0.6))
    wider = nn.Sequential(nn.Linear(5, 2), nn.ReLU(), nn.Linear(2, 11), nn.ReLU(), nn.Linear(11, 3))
    for other, patterns, message in (
        (wider, None, r"mask of 0\.weight has shape \(2, 5\)"),
        (cnn(), ["3.weight"], r"prunes '3\.weight', which"),
    ):
        with pytest.raises(PruningError, match=message):
            handle.set_mask(prune(other, 0.5, "random", include=patterns))
    train(model, optimizer)
    kept = handle.mask
    assert int(sum((model.get_parameter(name) != 0).sum() for name in kept.kept)) == kept.kept_count


def test_an_optimizer_of_other_parameters_is_refused():
    model = mlp()
    mask = prune(model, 0.5)
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with pytest.raises(PruningError, match=r"does not train 2\.weight"):
        keep_masked(optimizer, model, mask)
    before = torch.optim.SGD(mlp().parameters(), lr=0.1)
    with pytest.raises(PruningError, match="does not train"):
        keep_masked(before, model, mask)
