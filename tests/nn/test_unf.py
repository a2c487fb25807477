"""The oracle: its basis maps against loops over indices, equivariant on every spec."""

from itertools import product

import pytest
import torch
from torch.testing import assert_close

from nfopt.nn import LayoutError, UNFLinear, weight_layout
from nfopt.nn.unf import apply_basis_map, orbit_basis
from nfopt.testing import assert_equivariant
from tests.hand_specs import SPECS
from tests.nn.spec_bound import LAWS, SMALL, law_spec, law_tensors, layouts, on_tensors, random_values


def by_loops(values, parts, target, source):
    """The definition: sum over source indices that agree on all parts, over the number of free ones."""
    result = torch.zeros(*target.shape, values.shape[-1], dtype=values.dtype)
    outside = len(target.shape)
    free = 1
    for part in parts:
        if min(part) >= outside:
            free *= source.shape[part[0] - outside]
    for out in product(*map(range, target.shape)):
        for index in product(*map(range, source.shape)):
            both = (*out, *index)
            if all(len({both[p] for p in part}) == 1 for part in parts):
                result[out] += values[index] / free
    return result


@pytest.mark.parametrize("name", ["two layers", "recurrent 3", "concatenated", "uncoupled"])
def test_each_basis_map_is_its_definition(name):
    for layout in layouts(SMALL[name]):
        values = random_values(layout)
        for element in orbit_basis(layout):
            if element.source < 0:
                continue
            source, target = layout.blocks[element.source], layout.blocks[element.target]
            given = values[element.source]
            got = apply_basis_map(given, element.parts, target, source)
            assert_close(got, by_loops(given, element.parts, target, source))


@pytest.mark.parametrize("name", LAWS)
def test_the_oracle_follows_every_permutation(name):
    spec = law_spec(name)
    for layout in layouts(spec):
        layer = UNFLinear(layout, 1, 2).double()
        with torch.no_grad():
            for weight in layer.weights:
                weight.normal_(generator=torch.Generator().manual_seed(0))
        if spec.groups:
            generator = torch.Generator().manual_seed(1)
            assert_equivariant(on_tensors(layer, layout), spec, law_tensors(spec), generator, samples=1)


def test_a_fresh_oracle_has_no_constants_and_is_bounded_in_scale():
    layout = weight_layout(SPECS["mlp"])
    layer = UNFLinear(layout, 3, 5, generator=torch.Generator().manual_seed(0)).double()
    zeros = [torch.zeros_like(v) for v in random_values(layout, channels=3)]
    assert not any(out.any() for out in layer(zeros))
    for out in layer(random_values(layout, channels=3, batch=(20,))):
        assert 0.05 < out.square().mean().sqrt() < 1.3


def test_without_bias_the_layer_is_linear():
    layout = weight_layout(SPECS["rnn"])
    layer = UNFLinear(layout, 1, 1, bias=False).double()
    a, b = random_values(layout, 0), random_values(layout, 1)
    both = layer([x - 2 * y for x, y in zip(a, b, strict=True)])
    for got, x, y in zip(both, layer(a), layer(b), strict=True):
        assert_close(got, x - 2 * y)


def test_values_of_another_spec_are_refused():
    layer = UNFLinear(weight_layout(SPECS["mlp"]), 1, 1)
    with pytest.raises(LayoutError, match="another spec"):
        layer(random_values(weight_layout(SPECS["rnn"])))
