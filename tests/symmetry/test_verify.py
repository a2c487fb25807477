"""Verification accepts symmetries, and rejects specs that were broken by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from nfopt.errors import PermutationSpecError
from nfopt.symmetry import (
    Atom,
    Axis,
    PermutationSpec,
    TensorAxes,
    VerificationReport,
    trace_permutation_spec,
    verify,
)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2))


def normed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 2, 1))


def with_axes(spec: PermutationSpec, name: str, *axes: Axis) -> PermutationSpec:
    tensors = dict(spec.tensors)
    tensors[name] = replace(tensors[name], axes=axes)
    return replace(spec, tensors=tensors)


def renamed(spec: PermutationSpec, old: str, new: str) -> PermutationSpec:
    def swap(axis: Axis) -> Axis:
        return Atom(new, axis.size) if axis == Atom(old, axis.size) else axis

    tensors = {
        name: replace(entry, axes=tuple(map(swap, entry.axes))) for name, entry in spec.tensors.items()
    }
    return replace(spec, tensors=tensors)


X = torch.ones(2, 3)
IMAGE = torch.ones(2, 3, 4, 4)


def test_a_traced_spec_passes_with_every_control() -> None:
    report = verify(mlp(), trace_permutation_spec(mlp(), X), X, controls=None)
    assert report.passed
    assert report.max_error < 1e-12
    assert report.controls
    assert not report.suspected_ties
    assert report.raise_if_failed() is report


def test_a_wrong_tie_fails_and_the_guilty_groups_are_named() -> None:
    module = mlp()
    spec = trace_permutation_spec(module, X)
    # The second bias goes with the first layer, the wrong one.
    broken = with_axes(spec, "2.bias", Atom("0", 5))
    report = verify(module, broken, X)
    assert not report.passed
    assert {name for name, _ in report.guilty} == {"0", "2"}
    with pytest.raises(PermutationSpecError, match="not a symmetry: "):
        report.raise_if_failed()


def test_a_freed_output_fails() -> None:
    module = mlp()
    spec = trace_permutation_spec(module, X)
    report = verify(module, replace(spec, fixed={}), X)
    assert not report.passed
    assert "4.weight[0]" in {name for name, _ in report.guilty}


def test_a_statistic_left_out_fails() -> None:
    module = normed()
    spec = trace_permutation_spec(module, IMAGE)
    broken = with_axes(spec, "1.running_var", Atom("lost", 5))
    broken = replace(broken, fixed={**broken.fixed, "lost": "forgotten"})
    report = verify(module, broken, IMAGE)
    assert not report.passed
    assert [name for name, _ in report.guilty] == ["0"]


def test_two_groups_merged_into_one_pass_but_are_suspected() -> None:
    module = mlp()
    merged = renamed(trace_permutation_spec(module, X), "2", "0")
    report = verify(module, merged, X, controls=None)
    assert report.passed
    assert len(merged.groups) == 1
    assert report.suspected_ties
    assert "suspected needless tie: 0 without" in str(report)


def test_a_bystander_tied_to_a_group_is_suspected() -> None:
    class Bystander(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()
            self.ignored = nn.Parameter(torch.zeros(5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) + 0 * self.ignored.sum()

    module = Bystander()
    spec = trace_permutation_spec(module, X)
    tied = with_axes(spec, "ignored", Atom("inner.0", 5))
    report = verify(module, tied, X, controls=None)
    assert report.passed
    assert any(control.skipped == (("ignored", 0),) for control in report.suspected_ties)


def test_zero_initialised_scales_do_not_hide_a_fault() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()
            self.scale = nn.Parameter(torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :2] + self.scale * self.inner(x)

    module = Scaled()
    spec = trace_permutation_spec(module, X)
    broken = with_axes(spec, "inner.2.bias", Atom("inner.0", 5))
    assert verify(module, spec, X).passed
    assert not verify(module, broken, X).passed


def test_a_spec_of_another_model_is_refused_at_the_first_difference() -> None:
    spec = trace_permutation_spec(mlp(), X)
    wider = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 2))
    with pytest.raises(
        PermutationSpecError, match=r"0.weight has shape \(7, 3\) in Sequential, but \(5, 3\)"
    ):
        verify(wider, spec, X)
    with pytest.raises(PermutationSpecError, match=r"'1.weight', which the spec does not know"):
        verify(normed(), trace_permutation_spec(nn.Sequential(nn.Conv2d(3, 5, 1)), IMAGE), IMAGE)
    with pytest.raises(PermutationSpecError, match=r"has the tensor '2.weight', which Linear|'weight'"):
        verify(nn.Linear(3, 2), spec, X)
    extra = replace(spec, tensors={**spec.tensors, "extra": TensorAxes((Atom("e", 3),))})
    with pytest.raises(PermutationSpecError, match=r"the spec has the tensor .extra., which Sequential"):
        verify(mlp(), extra, X)


def test_outputs_that_do_not_vary_prove_nothing() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 0 * self.inner(x)

    report = verify(Constant(), trace_permutation_spec(Constant(), X), X)
    assert not report.passed
    assert any("prove nothing" in note for note in report.notes)


def test_casts_to_less_precision_are_undone_and_noted() -> None:
    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner[2:](self.inner[:2](x).float().half().to(x.dtype))

    report = verify(Casting(), trace_permutation_spec(Casting(), X), X)
    assert report.passed
    assert report.max_error < 1e-12
    assert any("casts to less than float64" in note for note in report.notes)


def test_verification_leaves_the_module_and_the_random_state_alone() -> None:
    module = normed().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.get_rng_state()
    spec = trace_permutation_spec(module, IMAGE)
    verify(module, spec, IMAGE)
    assert module.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in before.items())


def test_the_seed_decides_the_report() -> None:
    module = mlp()
    spec = trace_permutation_spec(module, X)
    assert verify(module, spec, X, seed=7) == verify(module, spec, X, seed=7)
    assert verify(module, spec, X, seed=7).controls != verify(module, spec, X, seed=8).controls


def test_the_worst_error_of_a_report_counts_what_is_not_a_number_as_infinite() -> None:
    report = VerificationReport("m", 1, 1e-9, (0.0, float("nan")))
    assert not report.passed
    assert report.max_error != report.max_error


@pytest.mark.parametrize("trials", [0, -1])
def test_no_trial_is_no_proof(trials: int) -> None:
    spec: Any = trace_permutation_spec(mlp(), X)
    with pytest.raises(PermutationSpecError, match="at least one trial"):
        verify(mlp(), spec, X, trials=trials)


def test_infinite_outputs_are_compared_by_where_they_are() -> None:
    class Masked(nn.Module):
        def __init__(self, *, hidden: bool) -> None:
            super().__init__()
            self.inner = mlp()
            self.hidden = hidden

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.inner[:4](x)
            # Masking one hidden unit tells it from the others; masking one output does not.
            if self.hidden:
                return torch.cat([y[:, :1], torch.full_like(y[:, :1], float("inf")), y[:, 2:]], 1)
            return torch.cat([self.inner[4](y), torch.full((2, 1), -float("inf"))], 1)

    plain = trace_permutation_spec(Masked(hidden=False), X)
    assert verify(Masked(hidden=False), plain, X).passed
    assert not verify(Masked(hidden=True), plain, X).passed
