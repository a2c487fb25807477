"""NeuralFunctional: every configuration follows the permutations, keeps its scale, and says what is wrong."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import nfopt.nn
from nfopt.errors import PermutationSpecError, UnknownNameError
from nfopt.nn import LayoutError, NeuralFunctional, NeuralFunctionalConfig
from nfopt.nn.neural_functional import _activate
from nfopt.symmetry import trace_permutation_spec
from nfopt.testing import assert_equivariant, equivariance_error, wrong_coupling_error
from tests.hand_specs import SPECS, random_specs, random_tensors
from tests.nn.spec_bound import LAWS, NETS, law_spec, law_tensors, mlp

LAYERS = ("dws", "hnp", "np", "attention", "unf", "pointwise")
CONFIGS = {
    **{layer: {"layer": layer} for layer in LAYERS},
    "dws max": {"reduction": "max", "pooling": ("max",)},
    "plain": {"residual": False, "norm": None, "dropout": 0.1, "head_hidden": 0},
    "np told apart": {"layer": "np", "position": "learned", "norm": "tensor", "activation": "gelu"},
    "nft": {"layer": "attention", "position": "sinusoidal", "fourier_frequencies": 3, "activation": "silu"},
    "queries": {"queries": 5, "heads": 2},
    "standardised": {"standardise_pooled": True, "norm": None, "fourier_frequencies": 3},
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def functional(spec, names=None, **options):
    options = {"channels": 4, "depth": 2, "outputs": 3, **options}
    config = NeuralFunctionalConfig(**options)
    return NeuralFunctional(spec, config, names, generator=seeded()).double().eval()


@pytest.mark.parametrize("head", ["invariant", "equivariant"])
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", ["mlp", "rnn", "concatenated", "traced convnet", "traced tied"])
def test_every_configuration_follows_every_permutation(name, config, head):
    spec = law_spec(name)
    network = functional(spec, head=head, **CONFIGS[config])
    assert_equivariant(network, spec, law_tensors(spec), seeded(), samples=1)


@pytest.mark.parametrize("head", ["invariant", "equivariant"])
@pytest.mark.parametrize("name", LAWS)
def test_the_default_follows_every_permutation_of_every_spec(name, head):
    spec = law_spec(name)
    network = functional(spec, head=head)
    if spec.groups:
        assert_equivariant(network, spec, law_tensors(spec), seeded(), samples=1)


@settings(deadline=None, max_examples=20)
@given(random_specs(), st.sampled_from(LAYERS), st.integers(0, 99))
def test_every_layer_is_equivariant_on_random_specs(spec, layer, seed):
    network = functional(spec, layer=layer, head="equivariant")
    tensors = random_tensors(spec, seed)
    assert equivariance_error(network, spec, tensors, seeded(seed)) < 1e-9


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer != "pointwise"])
def test_a_wrong_coupling_changes_the_answer(layer):
    spec = SPECS["mlp"]
    assert wrong_coupling_error(functional(spec, layer=layer), spec, law_tensors(spec), seeded()) > 1e-3


def test_the_pointwise_ablation_does_not_see_the_coupling():
    spec = SPECS["mlp"]
    error = wrong_coupling_error(functional(spec, layer="pointwise"), spec, law_tensors(spec), seeded())
    assert error < 1e-9


@pytest.mark.parametrize("layer", ["dws", "np", "attention"])
def test_a_batch_of_nets_gives_each_net_its_own_answer(layer):
    spec = SPECS["rnn"]
    network = functional(spec, layer=layer)
    tensors = law_tensors(spec, batch=(2, 3))
    together = network(tensors)
    assert together.shape == (2, 3, 3)
    assert_close(together[1, 2], network({n: t[1, 2] for n, t in tensors.items()}))


@pytest.mark.parametrize(("outputs", "channels"), [(1, 1), (3, 2)])
def test_an_equivariant_head_returns_tensors_of_the_nets_shapes(outputs, channels):
    spec = SPECS["resnet"]
    network = functional(spec, head="equivariant", outputs=outputs, in_channels=channels)
    tensors = law_tensors(spec, batch=(2,))
    if channels > 1:
        tensors = {n: torch.stack([t, t.sin()], -1) for n, t in tensors.items()}
    for name, written in network(tensors).items():
        assert written.shape == (2, *spec.tensors[name].shape, *([outputs] if outputs > 1 else []))


def fresh_scales(width, depth, seeds, **options):
    """Root mean square of the outputs of fresh networks for each tensor of an MLP."""
    spec, squares = mlp(2, width, width, 3), []
    config = NeuralFunctionalConfig(channels=8, depth=depth, head="equivariant", outputs=8, **options)
    for seed in range(seeds):
        tensors = {n: t.float() for n, t in random_tensors(spec, seed).items()}
        with torch.no_grad():
            written = NeuralFunctional(spec, config, generator=seeded(seed))(tensors)
        squares.append(torch.stack([t.square().mean() for t in written.values()]))
    return torch.stack(squares).mean(0).sqrt()


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("width", "depth"), [(8, 1), (8, 12), (64, 4), (512, 1), (512, 6)])
def test_the_scale_stays_one_over_widths_and_depths(width, depth, residual):
    scales = fresh_scales(width, depth, 4, residual=residual)
    assert bool((scales > 0.5).all()) and bool((scales < 1.6).all()), scales


@pytest.mark.parametrize("layer", ["np", "hnp", "attention", "pointwise"])
def test_other_layers_keep_the_scale_too(layer):
    for width in (8, 64):
        scales = fresh_scales(width, 4, 4, layer=layer)
        assert bool((scales > 0.5).all()) and bool((scales < 1.6).all()), scales


@pytest.mark.parametrize("width", [8, 128])
def test_without_normalisation_the_scale_stays_within_a_factor_of_four(width):
    scales = fresh_scales(width, 8, 4, norm=None)
    assert bool((scales > 0.25).all()) and bool((scales < 4).all()), scales


@pytest.mark.parametrize(("activation", "x"), [("relu", 1.5), ("gelu", -0.3), ("silu", 0.7)])
def test_activations_keep_the_scale_of_normal_inputs(activation, x):
    drawn = torch.randn(400_000, generator=seeded())
    assert abs(_activate(drawn, activation).square().mean().sqrt() - 1) < 0.01
    function = getattr(torch.nn.functional, activation)
    gain = _activate(torch.tensor([1.0]), activation) / function(torch.tensor([1.0]))
    assert_close(_activate(torch.tensor([x]), activation), gain * function(torch.tensor([x])))


@pytest.mark.parametrize("layer", ["dws", "np", "attention", "pointwise"])
def test_the_stack_compiles_as_one_graph(layer):
    spec = SPECS["mlp"]
    network = functional(spec, layer=layer, head="equivariant")
    tensors = law_tensors(spec, batch=(2,))
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    for name, expected in network(tensors).items():
        assert_close(compiled(tensors)[name], expected)


def test_dropout_acts_in_training_alone():
    spec = SPECS["mlp"]
    network = functional(spec, dropout=0.5)
    tensors = law_tensors(spec)
    assert torch.equal(network(tensors), network(tensors))
    network.train()
    assert not torch.equal(network(tensors), network(tensors))


def test_the_same_generator_gives_the_same_network_and_a_copy_is_one():
    spec = SPECS["mlp"]
    tensors = law_tensors(spec)
    network = functional(spec, fourier_frequencies=3)
    assert torch.equal(network(tensors), functional(spec, fourier_frequencies=3)(tensors))
    other = functional(spec, fourier_frequencies=3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(tensors), network(tensors))
    assert torch.equal(copy.deepcopy(network)(tensors), network(tensors))


def test_every_parameter_gets_a_gradient():
    spec = SPECS["mlp"]
    for layer in LAYERS:
        network = functional(spec, layer=layer, position="learned").train()
        network(law_tensors(spec, batch=(4,))).square().sum().backward()
        missing = [n for n, p in network.named_parameters() if p.grad is None]
        assert not missing, (layer, missing)


def test_the_output_scale_is_a_factor():
    spec = SPECS["mlp"]
    full, small = (functional(spec, output_scale=s)(law_tensors(spec)) for s in (1.0, 0.01))
    assert_close(small, full / 100)


def test_tensors_that_are_not_read_need_not_be_there():
    spec = SPECS["resnet"]
    names = ["stem.weight", "fc.weight"]
    network = functional(spec, names)
    assert network({n: t for n, t in law_tensors(spec).items() if n in names}).shape == (3,)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_nan_in_one_net_stays_visible_and_in_that_net(config):
    spec = SPECS["mlp"]
    tensors = law_tensors(spec, batch=(2,))
    tensors["2.weight"][1, 3, 2] = float("nan")
    answers = functional(spec, **CONFIGS[config])(tensors)
    assert bool(answers[0].isfinite().all()) and bool(answers[1].isnan().all())


def test_the_example_of_the_docstring_works():
    factory, shape = NETS["convnet"]
    inputs, nets = torch.zeros(shape), [factory() for _ in range(5)]
    code = [line[8:] for line in (NeuralFunctional.__doc__ or "").splitlines() if line.startswith(" " * 8)]
    start = next(i for i, line in enumerate(code) if line.startswith("spec ="))
    scope = {name: getattr(nfopt.nn, name) for name in nfopt.nn.__all__}
    scope |= {"nets": nets, "inputs": inputs, "trace_permutation_spec": trace_permutation_spec}
    exec("\n".join(code[start : start + 5]), scope)
    assert scope["predictions"].shape == (5, 1)


def test_statistics_of_a_zoo_make_its_scale_irrelevant():
    spec = SPECS["mlp"]
    zoo = law_tensors(spec, batch=(50,))
    network = functional(spec)
    network.fit_statistics(zoo)
    before = network(zoo)
    scaled = {n: 100 * t - 5 for n, t in zoo.items()}
    network.fit_statistics(scaled)
    assert_close(network(scaled), before)
    assert_equivariant(network, spec, law_tensors(spec, 3), seeded())


def test_wide_inputs_can_be_permuted_and_told_apart_by_position():
    spec = SPECS["mlp"]
    full, few = (functional(spec, also_permuted=names, position="learned") for names in ((), ("x",)))
    assert sum(p.numel() for p in few.lift.parameters()) < sum(p.numel() for p in full.lift.parameters())
    assert_equivariant(few, spec, law_tensors(spec), seeded())
    swapped = {n: t.flip(1) if n == "0.weight" else t for n, t in law_tensors(spec).items()}
    assert not torch.allclose(few(swapped), few(law_tensors(spec)))
    with pytest.raises(UnknownNameError, match="atom"):
        functional(spec, also_permuted=("inputs",))


def test_wrong_configurations_are_refused():
    with pytest.raises(UnknownNameError, match="dws"):
        NeuralFunctionalConfig(layer="dwsnet")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnknownNameError, match="relu"):
        NeuralFunctionalConfig(activation="rely")  # pyright: ignore[reportArgumentType]
    with pytest.raises(LayoutError, match="depth"):
        NeuralFunctionalConfig(depth=0)
    with pytest.raises(LayoutError, match="fourier_frequencies"):
        NeuralFunctionalConfig(fourier_frequencies=-1)
    with pytest.raises(LayoutError, match="max"):
        NeuralFunctionalConfig(layer="np", reduction="max")
    with pytest.raises(LayoutError, match="output_scale"):
        NeuralFunctionalConfig(output_scale=math.nan)


def test_nets_of_another_spec_and_mixed_batches_are_refused():
    network = functional(SPECS["mlp"])
    with pytest.raises(PermutationSpecError, match=r"stem\.weight"):
        network(law_tensors(SPECS["resnet"]))
    tensors = law_tensors(SPECS["mlp"])
    with pytest.raises(PermutationSpecError, match=r"2\.weight"):
        network({**tensors, "2.weight": torch.zeros(5, 5).double()})
    with pytest.raises(PermutationSpecError, match="missing"):
        network({n: t for n, t in tensors.items() if n != "4.bias"})
