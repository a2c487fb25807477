"""What the mask network reads: a look ahead that is Adam's, and inputs that a scale does not change."""

from importlib import import_module

import pytest
import torch
from torch.nn import functional

from nfopt.errors import PruningError, TraceError
from nfopt.pruning import prune
from nfopt.pruning.neural import FEATURES, TENSOR_INPUTS, look_ahead, neural_score, read_model
from nfopt.pruning.neural.mask_inputs import covering
from nfopt.symmetry import PermutationSpec
from tests.pruning.nets import batches, cnn, mlp
from tests.pruning.neural.test_neural_score import context, loud


def test_the_look_ahead_is_adam_on_the_batches_in_turn():
    model, data = mlp(dtype=torch.float64), batches(2, dtype=torch.float64)
    found = look_ahead(context(model, data), 5, 1e-2)
    before = model[0].weight.clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(5):
        inputs, targets = data[step % 2]
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.detach())
    assert not torch.equal(before, found["0.weight"])


def test_the_look_ahead_leaves_the_model_and_what_is_pruned_alone():
    model = cnn().train()
    data = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))]
    seen = context(model, data)
    seen.kept["0.weight"][0] = False
    with torch.no_grad():
        model[0].weight[0] = 0.0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = look_ahead(seen, 3, 1e-2)
    read_model(seen, look_ahead_steps=3, look_ahead_lr=1e-2)
    assert bool((found["0.weight"][0] == 0).all()) and bool((found["0.weight"][1] != 0).any())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_look_ahead_that_overflows_is_named():
    with pytest.raises(PruningError, match=r"looking ahead left 0\.weight"):
        look_ahead(context(mlp(dtype=torch.float64)), 2, float("inf"))


def test_the_inputs_do_not_depend_on_the_scale_of_the_loss():
    model, data = mlp(dtype=torch.float64), batches(dtype=torch.float64)
    plain = read_model(context(model, data), look_ahead_steps=3, look_ahead_lr=1e-3)
    louder = read_model(
        context(model, data, loss=lambda outputs, targets: 100 * functional.cross_entropy(outputs, targets)),
        look_ahead_steps=3,
        look_ahead_lr=1e-3,
    )
    for one, other in zip(plain.features.elements, louder.features.elements, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(plain.tensors, louder.tensors, rtol=1e-3, atol=1e-3)


def test_tensor_inputs_are_centred_and_named():
    found = read_model(context(mlp(dtype=torch.float64)), look_ahead_steps=1, look_ahead_lr=1e-3)
    assert found.tensors.shape == (3, len(TENSOR_INPUTS))
    torch.testing.assert_close(found.tensors.mean(0), torch.zeros(len(TENSOR_INPUTS)), atol=1e-6, rtol=0)
    assert found.names == ("0.weight", "2.weight", "4.weight")
    assert FEATURES.element_channels == found.features.elements[0].shape[-1]


def test_what_a_spec_does_not_know_stands_on_its_own():
    known = PermutationSpec.uncoupled({"w": (3, 5), "old": (2, 2)})
    both = covering(known, {"w": (3, 5), "new": (7,)})
    assert set(both.tensors) == {"w", "new"}
    assert both.tensors["w"] == known.tensors["w"]
    assert set(covering(None, {"w": (3, 5)}).tensors) == {"w"}


def test_a_model_that_cannot_be_traced_is_named_and_a_spec_of_nothing_is_the_way_out(monkeypatch):
    def refuse(*_):
        raise TraceError("no graph.")

    monkeypatch.setattr(import_module("nfopt.pruning.prune"), "trace_permutation_spec", refuse)
    model = mlp()
    with pytest.raises(PruningError, match=r"could not be derived: no graph\. Give spec="):
        prune(model, 0.5, neural_score(loud().float()), batches=batches())
    spec = PermutationSpec.uncoupled({name: p.shape for name, p in model.named_parameters()})
    mask = prune(model, 0.4, neural_score(loud().float()), batches=batches(), spec=spec)
    assert mask.kept_count == round(0.4 * mask.total_count)
