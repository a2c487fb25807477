import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from nfopt.errors import PruningError
from nfopt.pruning import PruningMask, applied_mask, apply_mask, prune, remove_mask
from tests.pruning.nets import batches, cnn, mlp

X, Y = batches(1)[0]


def train_a_little(model, optimizer=None, steps=3):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()


def zeroed(model, mask):
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, kept in mask.kept.items():
            model.get_parameter(name).mul_(kept)
    return model


def test_a_masked_model_computes_what_one_with_zeros_does_and_goes_on_doing_so_in_training():
    model = mlp()
    mask = prune(model, 0.3)
    expected = zeroed(model, mask)(X)
    apply_mask(model, mask)
    assert torch.equal(model(X), expected)
    train_a_little(model)
    assert not torch.equal(model(X), expected)
    assert all(bool((part.weight[~mask.kept[f"{name}.weight"]] == 0).all())
               for name, part in model.named_children() if isinstance(part, nn.Linear))  # fmt: skip


def test_deepcopy_works_at_any_moment_and_the_copy_trains_on_its_own():
    model = mlp()
    apply_mask(model, prune(model, 0.3))
    copies = [copy.deepcopy(model)]
    model(X).sum().backward()
    copies.append(copy.deepcopy(model))
    model[0](X)
    copies.append(copy.deepcopy(model))
    before = model(X)
    for each in copies:
        assert torch.equal(each(X), before)
        train_a_little(each)
        assert applied_mask(each) == applied_mask(model)
        assert not torch.equal(each(X), before)
    assert torch.equal(model(X), before)


def test_plain_torch_masks_cannot_be_copied_so_that_the_hooks_are_needed():
    model = mlp()
    torch_prune.random_unstructured(model[0], "weight", 0.5)
    model(X)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)


def test_the_state_dict_goes_into_a_fresh_masked_model():
    model, other = mlp(0), mlp(1)
    mask = prune(model, 0.3)
    apply_mask(model, mask)
    train_a_little(model)
    state = model.state_dict()
    assert "0.weight_orig" in state and "0.weight_mask" in state and "0.weight" not in state
    apply_mask(other, mask.shuffled(torch.Generator()))
    other.load_state_dict(state)
    assert applied_mask(other) == mask
    assert torch.equal(other(X), model(X))


def test_removing_leaves_plain_parameters_with_zeros_and_no_hooks():
    model = mlp()
    mask = prune(model, 0.3)
    apply_mask(model, mask)
    train_a_little(model)
    expected = model(X)
    remove_mask(model)
    assert torch.equal(model(X), expected)
    assert set(model.state_dict()) == set(mlp().state_dict())
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in model.modules())
    assert all(bool((model.get_parameter(name)[~kept] == 0).all()) for name, kept in mask.kept.items())
    mlp().load_state_dict(model.state_dict())


def test_torch_s_own_remove_works_too():
    model = mlp()
    apply_mask(model, prune(model, 0.3))
    expected = model(X)
    for part in (model[0], model[2], model[4]):
        torch_prune.remove(part, "weight")
    assert torch.equal(model(X), expected)
    assert set(model.state_dict()) == set(mlp().state_dict())


class ReadsItsPart(nn.Module):
    """Reads the weight of a part whose own forward, and so whose own hook, is never called."""

    def __init__(self):
        super().__init__()
        self.part = nn.Linear(5, 3)

    def forward(self, x):
        return nn.functional.linear(x, self.part.weight, self.part.bias)


def test_a_weight_that_a_parent_reads_is_masked_and_trained_too():
    model = ReadsItsPart()
    mask = prune(model, 0.3)
    apply_mask(model, mask)
    before = model.part.weight.clone()
    train_a_little(model)
    model(X)
    assert not torch.equal(model.part.weight, before)
    assert bool((model.part.weight[~mask.kept["part.weight"]] == 0).all())


def test_attention_is_masked_whole():
    model = nn.MultiheadAttention(6, 2, batch_first=True)
    x = torch.randn(3, 5, 6)
    mask = prune(model, 0.3, "random")
    expected = zeroed(model, mask)(x, x, x)[0]
    apply_mask(model, mask)
    torch.testing.assert_close(model(x, x, x)[0], expected, rtol=0, atol=0)
    model(x, x, x)[0].sum().backward()
    assert model.out_proj.weight_orig.grad is not None


def test_a_failing_forward_leaves_the_model_copyable():
    model = mlp()
    apply_mask(model, prune(model, 0.3))
    with pytest.raises(RuntimeError):
        model(torch.zeros(2, 3))
    copy.deepcopy(model)


def test_masking_twice_or_with_another_model_s_mask_changes_nothing():
    model = mlp()
    mask = prune(model, 0.3)
    with pytest.raises(PruningError, match="another model"):
        apply_mask(model, prune(cnn(), 0.3))
    assert set(model.state_dict()) == set(mlp().state_dict())
    apply_mask(model, mask)
    with pytest.raises(PruningError, match="masked already"):
        apply_mask(model, mask)
    remove_mask(model)
    with pytest.raises(PruningError, match="nothing to remove"):
        remove_mask(model)
    with pytest.raises(PruningError, match="no weight of Sequential is masked"):
        applied_mask(model)


def test_pruning_goes_on_from_a_masked_model():
    model = mlp()
    first = prune(model, 0.5)
    apply_mask(model, first)
    second = prune(model, 0.25, start=applied_mask(model))
    assert isinstance(second, PruningMask) and second.intersection(first) == second
