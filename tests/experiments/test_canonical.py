from math import pi

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from nfopt.experiments.canonical import canonical_relu, canonical_siren
from nfopt.experiments.question import ExperimentError
from nfopt.symmetry import trace_permutation_spec
from nfopt.zoo import ScaleNeurons, ZooError
from tests.experiments.toys import SIREN, conv_question, permuted, random_nets, siren_zoo, values

OMEGA = SIREN.omega_0


def disguised(tensors, generator):
    """The same functions with signs flipped and phases shifted at random."""
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    for i, width in enumerate(SIREN.hidden):
        nets = len(tensors["0.bias"])
        sign = 2.0 * torch.randint(2, (nets, width), generator=generator) - 1
        turns = torch.randint(-3, 4, (nets, width), generator=generator).double()
        tensors[f"{2 * i}.weight"] = tensors[f"{2 * i}.weight"] * sign[..., None]
        tensors[f"{2 * i}.bias"] = tensors[f"{2 * i}.bias"] * sign + turns * pi / OMEGA
        out = tensors[f"{2 * i + 2}.weight"]
        tensors[f"{2 * i + 2}.weight"] = out * (sign * (1 - 2 * (turns % 2)))[:, None]
    return tensors


@given(st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_the_canonical_net_computes_what_the_net_did(seed):
    zoo = siren_zoo(7, seed=seed, dtype=torch.float64)
    found = canonical_siren(zoo.spec, zoo.tensors, OMEGA)
    torch.testing.assert_close(values(found), values(zoo.tensors), rtol=1e-9, atol=1e-9)
    for i in range(2):
        assert (found[f"{2 * i}.weight"].sum(-1) >= 0).all()
        assert (found[f"{2 * i}.bias"].abs() <= pi / 2 / OMEGA + 1e-12).all()


@given(st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_flipped_signs_and_shifted_phases_leave_no_trace(seed):
    zoo = siren_zoo(7, seed=seed, dtype=torch.float64)
    other = disguised(zoo.tensors, torch.Generator().manual_seed(seed))
    torch.testing.assert_close(values(other), values(zoo.tensors), rtol=1e-9, atol=1e-9)
    found, again = (canonical_siren(zoo.spec, each, OMEGA) for each in (zoo.tensors, other))
    for name in found:
        torch.testing.assert_close(found[name], again[name], rtol=0, atol=1e-12)


def test_it_commutes_with_renumbering_neurons():
    zoo = siren_zoo(7, dtype=torch.float64)
    one = permuted(zoo.spec, canonical_siren(zoo.spec, zoo.tensors, OMEGA))
    other = canonical_siren(zoo.spec, permuted(zoo.spec, zoo.tensors), OMEGA)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-12)


def test_nets_of_another_form_are_refused():
    spec = conv_question().spec
    with pytest.raises(ExperimentError, match="SIRENs alone"):
        canonical_siren(spec, random_nets(spec, 3), OMEGA)


RELU = nn.Sequential(
    nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Conv2d(5, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)
).double()


def relu_nets(nets=5, seed=0):
    spec = trace_permutation_spec(RELU, torch.zeros(2, 1, 5, 5, dtype=torch.float64))
    return spec, random_nets(spec, nets, seed)


def outputs(tensors):
    images = torch.randn(7, 1, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    nets = len(next(iter(tensors.values())))
    return torch.stack(
        [functional_call(RELU, {n: t[i] for n, t in tensors.items()}, (images,)) for i in range(nets)]
    )


def test_canonical_relu_nets_compute_what_they_did_with_weights_of_length_one():
    spec, nets = relu_nets()
    found = canonical_relu(spec, nets)
    torch.testing.assert_close(outputs(found), outputs(nets), rtol=1e-9, atol=1e-9)
    for name in ("0.weight", "2.weight"):
        torch.testing.assert_close(
            found[name].flatten(2).norm(dim=2), torch.ones_like(found[name][:, :, 0, 0, 0])
        )


def test_scaled_neurons_leave_no_trace_and_renumbered_ones_commute():
    spec, nets = relu_nets()
    scaled = ScaleNeurons(spec, 1.0)(nets, torch.Generator().manual_seed(3))
    one, other = canonical_relu(spec, nets), canonical_relu(spec, scaled)
    moved = canonical_relu(spec, permuted(spec, nets))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(permuted(spec, one)[name], moved[name], rtol=1e-9, atol=1e-12)


def test_neurons_without_weights_stay_and_norms_are_refused():
    spec, nets = relu_nets()
    nets["0.weight"][:, 2] = 0
    assert torch.equal(canonical_relu(spec, nets)["0.bias"][:, 2], nets["0.bias"][:, 2])
    normed = conv_question().spec
    with pytest.raises(ZooError, match="cannot be scaled"):
        canonical_relu(normed, random_nets(normed, 3))
