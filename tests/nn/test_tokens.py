"""The token network: equivariance, zero start, and that neighbours are heard."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nfopt.nn.tokens import TokenNetwork
from nfopt.symmetry import Atom, PermutationSpec, Prod, TensorAxes
from nfopt.weightspace.incidence import Incidence, build_incidence

X, H, K, Y = Atom("x", 3), Atom("h", 5), Atom("k", 2), Atom("y", 7)
SPEC = PermutationSpec(
    {
        "first": TensorAxes((H, X), "linear", ("out", "in")),
        "bias": TensorAxes((H,), "bias", ("out",)),
        "second": TensorAxes((Y, Prod((H, K))), "linear", ("out", "in")),
    },
    {"x": "model input", "y": "model output", "k": "kernel"},
)
NETWORK = TokenNetwork(entry_features=4, tensor_features=3, tensor_outputs=2, hidden=5)


def weights(network: TokenNetwork = NETWORK) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for name, value in network.init(generator).items()
    }


def features(seed: int, incidence: Incidence) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    entries = torch.randn(incidence.entry_count, 4, generator=generator, dtype=torch.float64)
    return entries, torch.randn(len(incidence.names), 3, generator=generator, dtype=torch.float64)


def permute_entries(incidence: Incidence, values: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    moved = values.clone()
    moved[incidence.slices["first", "out"]] = values[incidence.slices["first", "out"]][order]
    moved[incidence.slices["bias", "out"]] = values[incidence.slices["bias", "out"]][order]
    flat = (order[:, None] * 2 + torch.arange(2)).flatten()
    moved[incidence.slices["second", "in"]] = values[incidence.slices["second", "in"]][flat]
    return moved


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_permuted_neurons_give_permuted_gains_and_the_same_tensor_outputs(seed: int) -> None:
    incidence = build_incidence(SPEC)
    entries, tensors = features(seed, incidence)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    outputs, gains = NETWORK(weights(), incidence, entries, tensors)
    moved_outputs, moved_gains = NETWORK(
        weights(), incidence, permute_entries(incidence, entries, order), tensors
    )
    assert torch.allclose(moved_outputs, outputs, atol=1e-12)
    assert torch.allclose(moved_gains, permute_entries(incidence, gains, order), atol=1e-12)
    assert not torch.allclose(gains, permute_entries(incidence, gains, order)) or order.equal(torch.arange(5))


@pytest.mark.parametrize("couple", [True, False])
def test_a_neuron_hears_of_its_other_tensors_only_when_coupled(couple: bool) -> None:
    network = TokenNetwork(4, 3, 2, hidden=5, couple=couple)
    incidence = build_incidence(SPEC)
    entries, tensors = features(1, incidence)
    changed = entries.clone()
    changed[incidence.slices["second", "in"].start + 2 : incidence.slices["second", "in"].start + 4] += (
        1.0  # inputs that come from neuron 1
    )
    _, before = network(weights(network), incidence, entries, tensors)
    _, after = network(weights(network), incidence, changed, tensors)
    first = incidence.slices["first", "out"]
    assert torch.equal(before[first], after[first]) is not couple


def test_it_starts_at_zero_and_gains_are_centred_per_tensor_and_side() -> None:
    incidence = build_incidence(SPEC)
    entries, tensors = features(2, incidence)
    outputs, gains = NETWORK({k: v.double() for k, v in NETWORK.init().items()}, incidence, entries, tensors)
    assert not outputs.any()
    assert not gains.any()
    _, gains = NETWORK(weights(), incidence, entries, tensors)
    for where in incidence.slices.values():
        assert gains[where].sum().abs() < 1e-12


def test_many_weights_run_side_by_side_as_they_do_alone() -> None:
    incidence = build_incidence(SPEC)
    entries, tensors = features(3, incidence)
    theta = weights()
    both = {k: torch.stack([v, 0.5 * v]) for k, v in theta.items()}
    outputs, gains = NETWORK(both, incidence, torch.stack([entries] * 2), torch.stack([tensors] * 2))
    for i, scale in enumerate((1.0, 0.5)):
        alone = NETWORK({k: scale * v for k, v in theta.items()}, incidence, entries, tensors)
        assert torch.allclose(outputs[i], alone[0])
        assert torch.allclose(gains[i], alone[1])
