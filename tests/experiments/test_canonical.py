from math import pi

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nfopt.experiments.canonical import canonical_siren
from nfopt.experiments.question import ExperimentError
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
