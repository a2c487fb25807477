"""The role-tied network: equivariant on every spec, sensitive to the coupling, one scale at every width."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from nfopt.nn import MetanetError, RoleTiedConfig, RoleTiedNetwork
from nfopt.symmetry import Atom, PermutationSpec, TensorAxes
from nfopt.testing import assert_equivariant, equivariance_error, wrong_coupling_error
from nfopt.weightspace import WeightSpaceFeatures
from tests.hand_specs import KH, SPECS, X, Y, fix, linear, random_specs, random_tensors, vector

FEATURES = WeightSpaceFeatures()
OUTPUTS = {"element_outputs": 2, "neuron_outputs": 3, "readouts": 5}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(seed=0, **options):
    config = RoleTiedConfig.reading(FEATURES, **{**OUTPUTS, **options})
    return RoleTiedNetwork(config, seeded(seed)).double()


def elements(net, spec):
    return lambda w, g: net(FEATURES(spec, w, g)).elements


def readout(net, spec):
    return lambda w, g: net(FEATURES(spec, w, g)).readout


def arguments(spec, **options):
    return random_tensors(spec, 0, **options), random_tensors(spec, 1, **options)


def stacked_mlp(width, hidden=2):
    atoms = [X, *(Atom(f"h{i}", width) for i in range(hidden)), Y]
    tensors = {}
    for i, (into, out) in enumerate(pairwise(atoms)):
        tensors[f"{i}.weight"] = linear(out, into, i / hidden)
        tensors[f"{i}.bias"] = vector("bias", out, i / hidden)
    return fix(tensors, X, Y)


@pytest.mark.parametrize("name", SPECS)
def test_element_outputs_follow_every_permutation(name):
    assert_equivariant(elements(network(), SPECS[name]), SPECS[name], arguments(SPECS[name]), seeded())


@pytest.mark.parametrize("name", SPECS)
def test_the_readout_is_invariant(name):
    assert_equivariant(readout(network(), SPECS[name]), SPECS[name], arguments(SPECS[name]), seeded())


@settings(deadline=None, max_examples=40)
@given(random_specs(), st.integers(0, 99))
def test_the_network_is_equivariant_on_random_specs(spec, seed):
    net = network(seed, channels=5, element_channels=3)
    args = random_tensors(spec, seed), random_tensors(spec, seed + 1)
    assert equivariance_error(elements(net, spec), spec, args, seeded(seed)) < 1e-9
    assert equivariance_error(readout(net, spec), spec, args, seeded(seed)) < 1e-9


@pytest.mark.parametrize("name", SPECS)
def test_neuron_outputs_follow_every_permutation(name):
    spec, (w, g), net = SPECS[name], arguments(SPECS[name]), network()
    permutation = spec.sample(seeded())
    before = net(FEATURES(spec, w, g)).neurons
    after = net(FEATURES(spec, spec.act(permutation, w), spec.act(permutation, g))).neurons
    for atom, table in before.items():
        assert_close(after[atom], table[permutation[atom]] if atom in permutation else table)


@pytest.mark.parametrize("name", SPECS)
def test_a_wrong_coupling_is_not_followed(name):
    spec, net = SPECS[name], network()
    assert wrong_coupling_error(elements(net, spec), spec, arguments(spec), seeded()) > 0.1
    assert wrong_coupling_error(readout(net, spec), spec, arguments(spec), seeded()) > 1e-3


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("mlp", "2.weight"),
        ("resnet", "block.bn1.running_var"),
        ("densenet", "norm2.weight"),
        ("mobilenet", "depthwise.weight"),
        ("convnext", "gamma"),
        ("mixer", "token.fc1.bias"),
        ("vit", "qkv.bias"),
        ("rnn", "embed.weight"),
    ],
)
def test_one_axis_permuted_alone_changes_the_readout(name, tensor):
    spec, (w, g), net = SPECS[name], arguments(SPECS[name]), network()
    permutation = spec.sample(seeded(3))
    moved = {**w, tensor: spec.act_on(tensor, permutation, w[tensor])}
    difference = readout(net, spec)(moved, g) - readout(net, spec)(w, g)
    assert difference.abs().max() > 1e-5


@pytest.mark.parametrize("name", SPECS)
def test_no_two_neurons_and_no_two_elements_get_the_same_outputs(name):
    spec, (w, g), net = SPECS[name], arguments(SPECS[name]), network()
    result = net(FEATURES(spec, w, g))
    for table in result.neurons.values():
        assert len(table.unique(dim=0)) == len(table)
    for name, output in result.elements.items():
        rows = output.reshape(-1, 2)
        assert len(rows.unique(dim=0)) == len(rows), name


def test_information_travels_one_tensor_further_with_each_layer():
    spec = stacked_mlp(5, hidden=4)
    w, g = arguments(spec)
    # Rolled in weights and gradients alike, the bias keeps every statistic of its own.
    other = tuple({**x, "0.bias": x["0.bias"].roll(1)} for x in (w, g))
    reached = [{"0.weight", "0.bias", "1.weight"}]
    reached.append(reached[0] | {"1.bias", "2.weight"})
    for layers, expected in enumerate(reached, start=1):
        net = elements(network(layers=layers), spec)
        before, after = net(w, g), net(*other)
        assert {n for n in before if (before[n] - after[n]).abs().max() > 1e-12} == expected


def test_each_kernel_position_is_its_own():
    spec = PermutationSpec(
        {"w": TensorAxes((Atom("c", 3), KH, KH), "conv", ("out", "kernel", "kernel"))}, {"kh": "kernel"}
    )
    square = PermutationSpec(
        {"w": TensorAxes((Atom("c", 3), KH, Atom("kv", 3)), "conv", ("out", "kernel", "kernel"))},
        {"kh": "kernel", "kv": "kernel"},
    )
    constant = {"w": torch.ones(3, 3, 3, dtype=torch.float64)}
    for case in (spec, square):
        output = elements(network(), case)(constant, constant)["w"][0]
        positions = output.reshape(9, -1)
        # 1 and 3 are transposes of each other: height and width are told apart as well.
        assert len(positions.unique(dim=0)) == 9


@pytest.mark.parametrize("atom", ["x", "y", "kh", "kw"])
def test_indices_of_a_fixed_atom_are_not_interchangeable(atom):
    spec, (w, g), net = SPECS["resnet"], arguments(SPECS["resnet"]), network()
    size = spec.atoms[atom].size
    swap = {atom: torch.arange(size).flip(0)}
    before, after = (net(FEATURES(spec, *pair)) for pair in ((w, g), (spec.act(swap, w), spec.act(swap, g))))
    assert (before.readout - after.readout).abs().max() > 1e-5
    name = spec.occurrences[atom][0][0]
    followed = torch.stack([spec.act_on(name, swap, c) for c in before.elements[name].unbind(-1)], dim=-1)
    assert (followed - after.elements[name]).abs().max() > 1e-3


def test_positions_can_be_left_out():
    case = PermutationSpec({"w": TensorAxes((Atom("c", 3), KH), "conv", ("out", "kernel"))}, {"kh": "kernel"})
    constant = {"w": torch.ones(3, 3, dtype=torch.float64)}
    output = elements(network(position_frequencies=0), case)(constant, constant)["w"]
    assert_close(output[:, :1].expand_as(output), output)


def test_the_two_halves_of_a_gated_layer_are_told_apart():
    spec, (w, g), net = SPECS["vit"], arguments(SPECS["vit"]), network()
    w = {**w, "gated.bias": torch.ones(22, dtype=torch.float64)}
    g = {**g, "gated.bias": torch.ones(22, dtype=torch.float64)}
    for n in ("gated.weight",):
        w[n] = torch.cat([w[n][:11], w[n][:11]])
        g[n] = torch.cat([g[n][:11], g[n][:11]])
    first, second = elements(net, spec)(w, g)["gated.bias"].split(11)
    assert (first - second).abs().min() > 1e-6


def test_the_diagonal_of_a_repeated_atom_is_seen_apart():
    spec, net = SPECS["rnn"], network()
    constant = {n: torch.ones_like(t) for n, t in random_tensors(spec, 0).items()}
    output = elements(net, spec)(constant, constant)["hh.weight"]
    off = output[~torch.eye(5, dtype=torch.bool)]
    assert_close(off, off[:1].expand_as(off))
    diagonal = output[range(5), range(5)]
    assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert (diagonal[0] - off[0]).abs().min() > 1e-3


def test_one_network_serves_every_architecture_and_batches_equal_single_nets():
    net = network()
    for spec in SPECS.values():
        w, g = arguments(spec, batch=(3,))
        together = net(FEATURES(spec, w, g))
        alone = net(FEATURES(spec, {n: t[1] for n, t in w.items()}, {n: t[1] for n, t in g.items()}))
        assert together.readout.shape == (3, 5)
        assert_close(together.readout[1], alone.readout)
        for name, output in together.elements.items():
            assert output.shape == (*w[name].shape, 2)
            assert_close(output[1], alone.elements[name])
        for atom, output in together.neurons.items():
            assert_close(output[1], alone.neurons[atom])


@pytest.mark.parametrize("width", [3, 31, 307])
def test_a_fresh_network_has_outputs_of_order_one_at_every_width(width):
    spec = stacked_mlp(width)
    squares = []
    for seed in range(3):
        result = network(seed)(FEATURES(spec, *arguments(spec)))
        parts = [torch.cat([t.flatten() for t in result.elements.values()]), result.readout]
        parts.append(torch.cat([t.flatten() for t in result.neurons.values()]))
        squares.append([part.square().mean().item() for part in parts])
    rms = torch.tensor(squares).mean(0).sqrt()
    assert ((rms > 0.4) & (rms < 2.0)).all(), rms


def test_the_output_scale_is_as_asked():
    spec = SPECS["mlp"]
    one, small = (network(output_scale=s)(FEATURES(spec, *arguments(spec))) for s in (1.0, 0.01))
    assert_close(small.elements["2.weight"], 0.01 * one.elements["2.weight"])
    assert_close(small.readout, 0.01 * one.readout)


def test_a_score_linear_in_the_features_is_represented_exactly():
    spec, (w, g), net = SPECS["resnet"], arguments(SPECS["resnet"]), network(element_outputs=1)
    with torch.no_grad():
        for layer in net.layers:
            layer.to_element.weight.zero_()
        net.element_in.weight.zero_()
        net.element_in.weight[:, 1, 0] = 1  # log |w|
        net.element_out.weight.zero_()
        net.element_out.weight[:, 0, 0] = 1
    output = elements(net, spec)(w, g)["block.conv1.weight"].flatten()
    assert torch.equal(output.argsort(), w["block.conv1.weight"].abs().flatten().argsort())


def test_large_blocks_are_updated_slice_by_slice_with_the_same_result(monkeypatch):
    spec, args = SPECS["resnet"], arguments(SPECS["resnet"], batch=(2,))
    whole = elements(network(), spec)(*args)
    monkeypatch.setattr("nfopt.nn.role_layer._CHUNK", 7)
    for name, output in elements(network(), spec)(*args).items():
        assert_close(output, whole[name])


def test_every_weight_learns_from_some_model():
    net = network()
    total = torch.zeros((), dtype=torch.float64)
    for spec in SPECS.values():
        result = net(FEATURES(spec, *arguments(spec)))
        outputs = [*result.elements.values(), *result.neurons.values(), result.readout]
        total = total + sum(output.square().sum() for output in outputs)
    total.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_a_model_of_zeros_has_finite_outputs_and_gradients():
    spec, net = SPECS["rnn"], network()
    zeros = {n: torch.zeros_like(t) for n, t in random_tensors(spec, 0).items()}
    result = net(FEATURES(spec, zeros, zeros))
    (sum(t.sum() for t in result.elements.values()) + result.readout.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_a_layer_nobody_reads_has_no_weights():
    net = network(element_outputs=0)
    spec = SPECS["mlp"]
    result = net(FEATURES(spec, *arguments(spec)))
    assert result.elements == {}
    result.readout.square().sum().backward()
    assert not hasattr(net.layers[-1], "to_element")
    assert_equivariant(readout(net, spec), spec, arguments(spec), seeded())


def test_statistics_may_be_left_out():
    spec = SPECS["resnet"]
    w, g = ({n: t for n, t in x.items() if spec.tensors[n].role != "statistic"} for x in arguments(spec))
    assert set(elements(network(), spec)(w, g)) == set(w)


def test_the_same_seed_gives_the_same_network():
    one, same, other = (network(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["element_in.weight"], other["element_in.weight"])


def test_bad_configurations_and_features_are_refused():
    with pytest.raises(MetanetError, match="layers is 0; it must be 1 or more"):
        network(layers=0)
    with pytest.raises(MetanetError, match="has no 'widht'"):
        network(widht=3)
    spec = SPECS["mlp"]
    w, g = arguments(spec)
    with pytest.raises(MetanetError, match="4 channels per element"):
        network()(WeightSpaceFeatures(gradients=False, extras=("m",))(spec, w, None, {"m": g}))
    with pytest.raises(MetanetError, match="nothing to read"):
        network()(FEATURES(spec, {}, {}))


def test_several_batch_dimensions_and_any_memory_layout_are_read():
    spec, net = SPECS["resnet"], network()
    w, g = arguments(spec, batch=(2, 3))
    scattered = {n: t.transpose(0, -1).contiguous().transpose(0, -1) for n, t in w.items()}
    whole, same = net(FEATURES(spec, w, g)), net(FEATURES(spec, scattered, g))
    one = net(FEATURES(spec, {n: t[1, 2] for n, t in w.items()}, {n: t[1, 2] for n, t in g.items()}))
    assert whole.readout.shape == (2, 3, 5)
    for name, output in whole.elements.items():
        assert_close(output, same.elements[name])
        assert_close(output[1, 2], one.elements[name])


def test_tensors_without_elements_do_no_harm():
    empty = TensorAxes((Atom("none", 0), Atom("h", 5)), "linear", ("out", "in"))
    spec = PermutationSpec({**SPECS["mlp"].tensors, "empty": empty}, SPECS["mlp"].fixed)
    result = network()(FEATURES(spec, *arguments(spec)))
    assert result.elements["empty"].shape == (0, 5, 2)
    assert result.readout.isfinite().all()
    assert all(output.isfinite().all() for output in result.elements.values())
