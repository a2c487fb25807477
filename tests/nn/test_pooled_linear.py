"""The laws of the linear layers of one spec: equivariant, complete, free of redundancy, of unit scale."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from nfopt.errors import UnknownNameError
from nfopt.nn import DWSLinear, HNPLinear, LayoutError, NPLinear, PointwiseLinear, UNFLinear, weight_layout
from nfopt.nn.orbits import orbit_count
from nfopt.testing import assert_equivariant, equivariance_error, wrong_coupling_error
from tests.hand_specs import SPECS, random_specs, random_tensors
from tests.nn.spec_bound import (
    LAWS,
    SMALL,
    every_map,
    law_spec,
    law_tensors,
    layouts,
    mlp,
    on_tensors,
    random_nets,
    random_values,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def dws(layout, c_in=1, c_out=1, **options):
    return DWSLinear(layout, c_in, c_out, generator=seeded(), **options).double()


def randomise_biases(layer):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=seeded(1))
    return layer


@pytest.mark.parametrize("name", LAWS)
def test_the_layers_follow_every_permutation(name):
    spec = law_spec(name)
    folded, permuted = layouts(spec)
    layers = [dws(folded, 1, 2), HNPLinear(folded, 1, 2).double(), NPLinear(permuted, 1, 2).double()]
    layers += [PointwiseLinear(folded, 1, 2).double(), dws(folded, 1, 2, reduction="max")]
    for layer in map(randomise_biases, layers):
        if spec.groups:
            assert_equivariant(on_tensors(layer, layer.layout), spec, law_tensors(spec), seeded())


@settings(deadline=None, max_examples=30)
@given(random_specs(), st.integers(0, 99), st.booleans())
def test_the_layers_are_equivariant_on_random_specs(spec, seed, permute_io):
    layout = weight_layout(spec, permute_io=permute_io)
    layer = randomise_biases(dws(layout))
    assert (
        equivariance_error(on_tensors(layer, layout), spec, random_tensors(spec, seed), seeded(seed)) < 1e-9
    )


@pytest.mark.parametrize("name", SPECS)
def test_a_wrong_coupling_is_not_followed(name):
    spec = SPECS[name]
    layout = weight_layout(spec)
    assert wrong_coupling_error(on_tensors(dws(layout), layout), spec, law_tensors(spec), seeded()) > 0.01


@pytest.mark.parametrize("name", SMALL)
def test_free_parameters_equal_orbits_equal_the_rank_of_the_layer(name):
    for layout in layouts(SMALL[name]):
        for layer in (dws(layout), UNFLinear(layout, 1, 1).double()):
            maps = every_map(layer)
            assert layer.free_parameters == orbit_count(layout) == torch.linalg.matrix_rank(maps).item()


def nets_needed(layout):
    """So many random nets that one output element can tell apart all maps that reach it."""
    return sum(block.multiplicity for block in layout.blocks) + 2


@pytest.mark.parametrize("name", LAWS)
def test_each_orbit_has_one_parameter_per_pair_of_channels(name):
    for layout in layouts(law_spec(name)):
        linear = orbit_count(layout, affine=False)
        constant = orbit_count(layout) - linear
        for layer in (dws(layout, 3, 5), UNFLinear(layout, 3, 5)):
            assert layer.free_parameters == 15 * linear + 5 * constant


@pytest.mark.parametrize("name", ["mobilenet", "traced recurrent"])
def test_free_parameters_equal_the_rank_on_larger_specs(name):
    layout = weight_layout(law_spec(name))
    layer = dws(layout)
    maps = every_map(layer, nets=nets_needed(layout))
    assert layer.free_parameters == orbit_count(layout) == torch.linalg.matrix_rank(maps).item()


@pytest.mark.parametrize("name", SMALL)
def test_the_fast_layer_spans_the_same_maps_as_the_oracle(name):
    for layout in layouts(SMALL[name]):
        fast, slow = every_map(dws(layout)), every_map(UNFLinear(layout, 1, 1).double())
        rank = torch.linalg.matrix_rank(slow).item()
        assert torch.linalg.matrix_rank(torch.cat([fast, slow])).item() == rank


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("rnn", ["hh.weight", "ih.weight", "out.weight"]),
        ("vit", ["qkv.bias", "proj.weight", "norm.weight"]),
        ("densenet", ["norm2.weight", "norm3.bias", "conv1.weight"]),
        ("traced convnet", ["head.weight", "outer.weight", "inner.bias", "norm.running_var"]),
    ],
)
def test_the_oracle_reproduces_any_fast_layer_on_larger_specs(name, tensors):
    """Fitted on random nets, the oracle gives the fast layer's outputs on others."""
    layout = weight_layout(law_spec(name), tensors)
    fast, slow = randomise_biases(dws(layout)), UNFLinear(layout, 1, 1).double()
    count = nets_needed(layout)
    basis = every_map(slow, nets=count)
    wanted = torch.cat([out.flatten() for out in fast(random_nets(layout, count))])
    solution = torch.linalg.lstsq(basis.mT, wanted[:, None]).solution[:, 0]
    with torch.no_grad():
        torch.nn.utils.vector_to_parameters(solution, slow.parameters())
    values = random_values(layout, batch=(11,))
    for got, expected in zip(slow(values), fast(values), strict=True):
        assert_close(got, expected, rtol=1e-6, atol=1e-8)


def test_a_layer_that_lacks_a_map_is_noticed():
    layout = weight_layout(mlp(2, 5, 3))
    lacking = dws(layout, sectors=("w2w", "w2b", "b2w"))
    rank = torch.linalg.matrix_rank(every_map(lacking)).item()
    assert rank == lacking.free_parameters < orbit_count(layout)


@pytest.mark.parametrize("name", ["mlp", "resnet", "rnn"])
def test_every_output_depends_on_every_input_of_every_net_of_the_batch_alone(name):
    for layout in layouts(SPECS[name]):
        values = [v.requires_grad_() for v in random_values(layout, batch=(2,))]
        outputs = dws(layout)(values)
        for output in outputs:
            # An index whose weight is not random would cancel: a random projection of the output does not.
            direction = torch.randn(output[0].shape, generator=seeded(2), dtype=output.dtype)
            gradients = torch.autograd.grad((output[0] * direction).sum(), values, retain_graph=True)
            for gradient in gradients:
                assert bool((gradient[0] != 0).all()) and not gradient[1].any()


def test_each_output_element_hears_of_each_input_element():
    layout = weight_layout(mlp(2, 5, 7, 3))
    layer = dws(layout)
    counts = [v.numel() for v in random_values(layout)]
    shapes = [v.shape for v in random_values(layout)]

    def run(flat):
        parts = [p.view(s) for p, s in zip(flat.split(counts), shapes, strict=True)]
        return torch.cat([out.flatten() for out in layer(parts)])

    jacobian = torch.func.jacrev(run)(torch.cat([v.flatten() for v in random_values(layout)]))
    assert bool((jacobian != 0).all())


def test_a_batch_of_nets_gives_each_net_its_own_result():
    layout = weight_layout(SPECS["rnn"])
    layer = dws(layout, 3, 2)
    values = random_values(layout, batch=(2, 3), channels=3)
    together = layer(values)
    for i, j in ((0, 0), (1, 2)):
        alone = layer([v[i, j] for v in values])
        assert all(torch.allclose(t[i, j], a) for t, a in zip(together, alone, strict=True))


@pytest.mark.parametrize("permute_io", [False, True])
@pytest.mark.parametrize("width", [8, 32, 128, 512])
def test_a_fresh_layer_keeps_the_scale_at_one_at_every_width(width, permute_io):
    layout = weight_layout(mlp(2, width, width, 3), permute_io=permute_io)
    squares = []
    for seed in range(5):
        layer = DWSLinear(layout, 8, 8, generator=seeded(seed))
        outputs = layer([v.float() for v in random_values(layout, seed, channels=8)])
        squares.append(torch.stack([out.square().mean() for out in outputs]))
    rms = torch.stack(squares).mean(0).sqrt()
    assert bool((rms > 0.6).all()) and bool((rms < 1.3).all()), rms


def test_a_constant_weight_space_keeps_its_scale_too():
    layout = weight_layout(mlp(2, 64, 64, 3))
    values = [torch.randn(50, *[1] * len(b.shape), b.multiplicity * 8) for b in layout.blocks]
    values = [v.expand(50, *b.shape, -1) for v, b in zip(values, layout.blocks, strict=True)]
    for output in DWSLinear(layout, 8, 8, generator=seeded())(values):
        assert 0.5 < output.square().mean().sqrt() < 1.7


@pytest.mark.parametrize("name", ["mlp", "resnet", "rnn"])
def test_the_layer_compiles_as_one_graph(name):
    layout = weight_layout(SPECS[name])
    layer, values = dws(layout, 2, 3), random_values(layout, batch=(2,), channels=2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(values), layer(values), strict=True):
        assert_close(got, expected)


def test_a_layer_survives_copying_and_its_state_dict():
    layout = weight_layout(SPECS["rnn"])
    layer, values = dws(layout), random_values(layout)
    other = randomise_biases(dws(layout))
    other.load_state_dict(layer.state_dict())
    for twin in (other, copy.deepcopy(layer)):
        assert all(torch.equal(a, b) for a, b in zip(twin(values), layer(values), strict=True))


def test_nothing_masked_gets_a_gradient_that_acts():
    layout = weight_layout(SMALL["recurrent 2"])
    layer, values = dws(layout), random_values(layout)
    before = [out.detach().clone() for out in layer(values)]
    with torch.no_grad():
        for weight, name in zip(layer.weights, layer._masked, strict=True):
            if name is not None:
                weight[~getattr(layer, name)] = 1e6
    assert all(torch.equal(a, b) for a, b in zip(layer(values), before, strict=True))


def test_leaving_out_a_sector_cuts_exactly_that_path():
    layout = weight_layout(mlp(2, 5, 7, 3))
    kinds = ["w" if "weight" in b.block.tensor else "b" for b in layout.blocks]
    for sector in ("w2w", "w2b", "b2w", "b2b"):
        layer = dws(layout, sectors=(sector,))
        values = [v.requires_grad_() for v in random_values(layout)]
        for out, target in zip(layer(values), kinds, strict=True):
            if target != sector[-1]:
                assert not out.any()
                continue
            gradients = torch.autograd.grad(out.sum(), values, allow_unused=True, retain_graph=True)
            for gradient, source in zip(gradients, kinds, strict=True):
                heard = gradient is not None and bool(gradient.any())
                assert heard == (source == sector[0])


def test_a_nan_of_one_neuron_stays_visible():
    layout = weight_layout(SPECS["mlp"])
    values = random_values(layout)
    values[0][0, 0] = float("nan")
    assert all(out.isnan().any() for out in dws(layout)(values))


def test_wrong_options_are_refused():
    layout = weight_layout(SPECS["mlp"])
    with pytest.raises(LayoutError, match="in_channels"):
        DWSLinear(layout, 0, 1)
    with pytest.raises(UnknownNameError, match="w2w"):
        DWSLinear(layout, 1, 1, sectors=("w2v",))  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnknownNameError, match="mean"):
        DWSLinear(layout, 1, 1, reduction="average")  # pyright: ignore[reportArgumentType]
    with pytest.raises(LayoutError, match="permute_io=True"):
        NPLinear(layout, 1, 1)
    with pytest.raises(LayoutError, match="permutes x, y"):
        HNPLinear(weight_layout(SPECS["mlp"], permute_io=True), 1, 1)
    with pytest.raises(LayoutError, match="no block"):
        PointwiseLinear(weight_layout(SPECS["mlp"], []), 1, 1)


def test_a_layer_refuses_the_features_of_another_spec():
    layer = dws(weight_layout(SPECS["mlp"]))
    for other in (SPECS["resnet"], SPECS["vit"]):
        with pytest.raises(LayoutError, match="another spec"):
            layer(random_values(weight_layout(other)))
