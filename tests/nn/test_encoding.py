"""Fourier features act on each element; position codes tell inputs, outputs and layers apart."""

import math

import pytest
import torch
from torch.testing import assert_close

from nfopt.errors import UnknownNameError
from nfopt.nn import GaussianFourierFeatures, LayoutError, NPLinear, PositionEncoding, weight_layout
from nfopt.nn.encoding import sinusoidal_codes
from nfopt.symmetry import PermutationSpec
from nfopt.testing import assert_equivariant, equivariance_error
from tests.hand_specs import SPECS
from tests.nn.spec_bound import LAWS, law_spec, law_tensors, on_tensors


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", LAWS)
def test_both_encodings_follow_every_permutation(name):
    spec = law_spec(name)
    layout = weight_layout(spec, permute_io=True)
    fourier = GaussianFourierFeatures(1, 3, generator=seeded()).double()
    code = PositionEncoding(layout, fourier.out_channels, generator=seeded()).double()
    if spec.groups:
        encode = on_tensors(lambda values: code(fourier(values)), layout)
        assert_equivariant(encode, spec, law_tensors(spec), seeded())


def test_fourier_features_are_waves_of_each_element_on_its_own():
    fourier = GaussianFourierFeatures(2, 3, scale=0.7, generator=seeded()).double()
    x = torch.randn(5, 7 * 2, generator=seeded(1), dtype=torch.float64)
    (got,) = fourier([x])
    phase = 2 * math.pi * x[4, 6:8] @ fourier.frequencies
    expected = torch.cat([x[4, 6:8], 2**0.5 * phase.sin(), 2**0.5 * phase.cos()])
    assert_close(got.unflatten(-1, (7, 8))[4, 3], expected)


def test_fourier_features_have_unit_scale_and_are_saved():
    fourier = GaussianFourierFeatures(1, 64, scale=3.0, keep_inputs=False, generator=seeded())
    (got,) = fourier([torch.randn(100, 1, generator=seeded())])
    assert_close(got.square().mean(), torch.tensor(1.0))
    other = GaussianFourierFeatures(1, 64, scale=3.0, keep_inputs=False, generator=seeded(5))
    other.load_state_dict(fourier.state_dict())
    assert torch.equal(other.frequencies, fourier.frequencies) and not list(fourier.parameters())


@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_with_codes_a_stack_that_permutes_inputs_and_outputs_tells_them_apart(kind):
    hidden = SPECS["mlp"]
    everything = PermutationSpec(hidden.tensors)
    layout = weight_layout(hidden, permute_io=True)
    layer = NPLinear(layout, 5, 2, generator=seeded()).double()
    code = PositionEncoding(layout, 5, kind, generator=seeded()).double()

    def blind(tensors):
        return layout.leave(layer([v.repeat_interleave(5, -1) for v in layout.enter(tensors)]), channels=True)

    def seeing(tensors):
        values = code([v.repeat_interleave(5, -1) for v in layout.enter(tensors)])
        return layout.leave(layer([torch.tanh(v) for v in values]), channels=True)

    tensors = law_tensors(hidden)
    assert equivariance_error(blind, everything, tensors, seeded(3)) < 1e-12
    assert equivariance_error(seeing, everything, tensors, seeded(3)) > 0.01
    assert equivariance_error(seeing, hidden, tensors, seeded(3)) < 1e-12


def test_codes_tell_blocks_and_fixed_indices_apart_and_neurons_not():
    layout = weight_layout(SPECS["mlp"], permute_io=True)
    code = PositionEncoding(layout, 7, generator=seeded())
    zeros = [torch.zeros(*b.shape, b.multiplicity * 7) for b in layout.blocks]
    first, *_, last = code(zeros)
    assert len(first[0].unique(dim=0)) == 2 and len(first.unique(dim=0)) == 1
    assert len(last.unique(dim=0)) == 3
    assert len(torch.cat([c.flatten(0, -2) for c in code(zeros)]).unique(dim=0)) == 2 + 1 + 1 + 1 + 3 + 3


def test_an_output_has_the_same_code_in_its_weights_and_its_bias():
    layout = weight_layout(SPECS["mlp"], permute_io=True)
    code = PositionEncoding(layout, 7, generator=seeded())
    values = code([torch.zeros(*b.shape, b.multiplicity * 7) for b in layout.blocks])
    weight, bias = values[-2][:, 0], values[-1]
    assert_close(weight - weight[:1], bias - bias[:1])


def test_sinusoidal_codes_are_those_of_the_paper_and_are_not_trained():
    codes = sinusoidal_codes(11, 5)
    assert codes.shape == (11, 5)
    assert_close(codes[3, 2], torch.tensor(math.sin(3 / 10000 ** (2 / 5))))
    assert_close(codes[3, 3], torch.tensor(math.cos(3 / 10000 ** (2 / 5))))
    layer = PositionEncoding(weight_layout(SPECS["mlp"], permute_io=True), 5, "sinusoidal")
    assert not any(p.requires_grad for p in layer.parameters())


def test_wrong_options_are_refused():
    layout = weight_layout(SPECS["mlp"])
    with pytest.raises(UnknownNameError, match="learned"):
        PositionEncoding(layout, 1, "learnt")  # pyright: ignore[reportArgumentType]
    with pytest.raises(LayoutError, match="positive"):
        GaussianFourierFeatures(1, 0)
    with pytest.raises(LayoutError, match="2 channels"):
        GaussianFourierFeatures(2, 3)([torch.zeros(5, 3)])
