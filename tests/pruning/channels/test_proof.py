import gc
import weakref

import pytest
import torch

from nfopt.pruning import RemovalProver
from nfopt.pruning.channels import proof as proof_module
from nfopt.pruning.channels import surgery
from nfopt.symmetry import trace_permutation_spec
from tests.pruning.channels.nets import build

HALF = {"stem": torch.arange(6), "inner": torch.arange(4)}


@pytest.fixture
def prover():
    model, x = build("residual")
    return RemovalProver(model, trace_permutation_spec(model, x), x)


def test_a_right_removal_passes(prover):
    assert prover.prove(HALF).passed


def test_a_removal_that_keeps_other_channels_somewhere_is_caught(prover, monkeypatch):
    right = surgery.remaining

    def shifted(tensor, axes, kept):
        moved = {**kept, "inner": torch.arange(1, 5)} if tensor.shape == (7, 11, 3, 3) else kept
        return right(tensor, axes, moved)

    monkeypatch.setattr(surgery, "remaining", shifted)
    found = prover.prove(HALF)
    assert not found.passed
    assert "computes other values" in found.reason


@pytest.mark.parametrize("fails", [False, True])
def test_no_smaller_model_outlives_its_proof(prover, monkeypatch, fails):
    right, made = proof_module.without_channels, []

    def watched(model, spec, kept):
        smaller = right(model, spec, kept)
        if fails:
            smaller.stem.in_channels, smaller.stem.weight = 1, None
        made.append(weakref.ref(smaller))
        return smaller

    monkeypatch.setattr(proof_module, "without_channels", watched)
    gc.collect()
    gc.disable()
    try:
        assert prover.prove(HALF).passed is not fails
        assert made[0]() is None
    finally:
        gc.enable()


def test_a_number_that_does_not_follow_is_caught(prover, monkeypatch):
    right = proof_module.without_channels

    def stuck(model, spec, kept):
        smaller = right(model, spec, kept)
        smaller.inner.groups = 2
        return smaller

    monkeypatch.setattr(proof_module, "without_channels", stuck)
    found = prover.prove(HALF)
    assert found.error == float("inf")
    assert "inner (Conv2d) does not take fewer channels" in found.reason


@pytest.mark.parametrize(
    ("after", "error"),
    [
        (torch.tensor([1.0, 2.0, 3.0]), 0.0),
        (torch.tensor([1.0, 2.0, 3.5]), 0.5),
        (torch.tensor([1.0, 2.0]), float("inf")),
        (torch.tensor([1.0, 2.0, float("nan")]), float("inf")),
    ],
)
def test_the_difference_is_in_deviations_of_the_output(after, error):
    assert proof_module.difference([torch.tensor([1.0, 2.0, 3.0])], [after]) == error


def test_constant_outputs_and_missing_ones_are_told_apart():
    ones = torch.ones(3)
    assert proof_module.difference([ones], [ones]) == 0
    assert proof_module.difference([ones], []) == float("inf")
