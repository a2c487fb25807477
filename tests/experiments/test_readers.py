import pytest
import torch

from nfopt.errors import UnknownNameError
from nfopt.experiments.question import ExperimentError, Question, flatten
from nfopt.experiments.readers import READERS, check_readers, neuron_tokens, parameter_count
from nfopt.experiments.readers.functional import without
from nfopt.experiments.readers.neuron_statistics import neuron_products
from nfopt.experiments.readers.statnn import weight_statistics
from nfopt.nn import SECTORS
from nfopt.zoo.neuron_axes import scaled
from tests.experiments.toys import SIREN, conv_question, permuted, random_nets, values
from tests.hand_specs import SPECS
from tests.nn.spec_bound import concatenated

SPEC = SIREN.spec()
EQUIVARIANT = ("dws", "hnp", "np", "nft", "pointwise", "role_tied")
BLIND = ("mlp", "inr2vec", "transformer")


def question(head="invariant", outputs=3):
    forward = lambda tensors, inputs: values(tensors) if inputs is None else probe(tensors, inputs)  # noqa: E731
    outputs = 1 if head == "equivariant" else outputs
    return Question(SPEC, head=head, outputs=outputs, forward=forward, inputs=2)


def probe(tensors, inputs):
    from nfopt.zoo.siren import siren

    return siren(tensors, inputs, omega_0=SIREN.omega_0)


def made(name, head="invariant", seed=0):
    entry = READERS[name]
    return entry.make(question(head), 3 * entry.step, seed).double()


def pairs():
    return [(name, head) for name in READERS for head in READERS[name].heads]


@pytest.mark.parametrize(("name", "head"), pairs())
def test_every_reader_answers_in_the_form_asked_for_and_every_weight_of_it_is_trained(name, head):
    network, nets = made(name, head), random_nets(SPEC, 7)
    network.fit_statistics(nets)
    found = network(nets)
    if head == "invariant":
        assert found.shape == (7, 3)
        loss = (found - 1).square().sum()
    else:
        assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in nets.items()}
        loss = sum((t - 1).square().sum() for t in found.values())
    loss.backward()
    idle = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    # The role-tied network keeps a map for every role, the roles that this spec has not among them.
    assert not idle or name.startswith("role_tied")


@pytest.mark.parametrize("name", sorted(name for name in READERS if not READERS[name].probes))
def test_every_reader_reads_convolutional_nets_with_norms_too(name):
    entry, conv = READERS[name], conv_question(outputs=2)
    if "invariant" in entry.heads:
        network = entry.make(conv, entry.step).double()
        nets = random_nets(conv.spec, 5)
        network.fit_statistics(nets)
        assert network(nets).isfinite().all()


@pytest.mark.parametrize(
    "name",
    [
        *EQUIVARIANT,
        "statnn",
        "neuron_statistics",
        "role_tied_readout",
        "neuron_tokens",
        "neuron_tokens_probes",
        "neuron_tokens_compressed",
        *map("dws_without_{}".format, SECTORS),
    ],
)
def test_renumbering_neurons_changes_no_vector_of_an_invariant_reader(name):
    network, nets = made(name), random_nets(SPEC, 5)
    network.fit_statistics(nets)
    torch.testing.assert_close(network(permuted(SPEC, nets)), network(nets), rtol=1e-9, atol=1e-9)


def test_a_neurons_token_takes_its_weights_together_and_not_one_by_one():
    """Nets whose biases changed places have the same weights layer by layer, but are told apart."""
    network, nets = made("neuron_tokens"), random_nets(SPEC, 5)
    network.fit_statistics(nets)
    swapped = {**nets, "0.bias": nets["0.bias"].flip(1)}
    assert not torch.allclose(network(swapped), network(nets), rtol=1e-3)


def test_compression_is_asinh_of_what_the_head_reads():
    plain, compressed = made("neuron_tokens"), made("neuron_tokens_compressed")
    nets = {n: 30 * t for n, t in random_nets(SPEC, 5).items()}
    pooled = plain._pooled(nets)
    torch.testing.assert_close(compressed._pooled(nets), pooled.asinh(), rtol=1e-12, atol=1e-12)
    assert pooled.abs().max() > 10 * compressed._pooled(nets).abs().max()


def test_tokens_beside_probes_begin_silent():
    network, nets = made("neuron_tokens_probes"), random_nets(SPEC, 5)
    network.fit_statistics(nets)
    torch.testing.assert_close(network(nets), network.probes(nets), rtol=0, atol=0)
    torch.nn.init.ones_(network.tokens.head.weights[-1])
    assert not torch.allclose(network(nets), network.probes(nets), rtol=1e-3)


@pytest.mark.parametrize("head", ["small", "wide"])
def test_wide_fixed_dimensions_have_tokens_and_are_told_apart(head, monkeypatch):
    monkeypatch.setattr(neuron_tokens, "WIDE", 1 if head == "wide" else 64)
    network, nets = made("neuron_tokens"), random_nets(SPEC, 5)
    assert bool(len(network.wide)) == (head == "wide")
    network.fit_statistics(nets)
    torch.testing.assert_close(network(permuted(SPEC, nets)), network(nets), rtol=1e-9, atol=1e-9)
    turned = {**nets, "0.weight": nets["0.weight"].flip(2)}
    assert not torch.allclose(network(turned), network(nets), rtol=1e-3)


@pytest.mark.parametrize("name", [name for name, head in pairs() if head == "equivariant"])
def test_several_edits_are_the_last_dimension_and_differ(name):
    entry, nets = READERS[name], random_nets(SPEC, 5)
    network = entry.make(Question(SPEC, head="equivariant", outputs=3), 4 * entry.step).double()
    network.fit_statistics(nets)
    for tensor, edits in network(nets).items():
        assert edits.shape == (*nets[tensor].shape, 3)
        assert not torch.allclose(edits[..., 0], edits[..., 1])


@pytest.mark.parametrize("name", EQUIVARIANT)
def test_an_edit_is_renumbered_as_its_net_is(name):
    network, nets = made(name, "equivariant"), random_nets(SPEC, 5)
    network.fit_statistics(nets)
    one, other = network(permuted(SPEC, nets)), permuted(SPEC, network(nets))
    for tensor in one:
        torch.testing.assert_close(one[tensor], other[tensor], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("head", ["invariant", "equivariant"])
def test_hnp_is_dws_drawn_alike_so_that_tables_need_one_row_for_both(head):
    nets, answers = random_nets(SPEC, 5), []
    for name in ("dws", "hnp"):
        network = made(name, head, seed=3)
        network.fit_statistics(nets)
        answers.append(network(nets))
    torch.testing.assert_close(answers[1], answers[0], rtol=0, atol=0)
    assert not torch.allclose(flat(made("dws", head, seed=4)(nets)), flat(answers[0]))


def flat(answer):
    if isinstance(answer, torch.Tensor):
        return answer.flatten()
    return torch.cat([part.flatten() for part in answer.values()])


@pytest.mark.parametrize("name", BLIND)
def test_readers_that_see_the_order_of_neurons_are_told_apart_by_the_same_check(name):
    network, nets = READERS[name].make(question(), 16).double(), random_nets(SPEC, 5)
    assert not torch.allclose(network(permuted(SPEC, nets)), network(nets), rtol=1e-3)


@pytest.mark.parametrize("name", sorted(READERS))
def test_the_answer_about_a_net_does_not_depend_on_the_nets_beside_it(name):
    network, nets = made(name).eval(), random_nets(SPEC, 5)
    alone = network({n: t[2:3] for n, t in nets.items()})
    torch.testing.assert_close(network(nets)[2:3], alone, rtol=1e-9, atol=1e-9)


# The role-tied ones read the nets' own scale, and probes run nets that would be others.
@pytest.mark.parametrize(
    "name", sorted(n for n in READERS if not READERS[n].probes and not n.startswith("role_tied"))
)
def test_standardised_inputs_make_readers_blind_to_the_units_of_a_zoo(name):
    nets = random_nets(SPEC, 11)
    network = made(name).eval()
    network.fit_statistics(nets)
    answer = network(nets)
    scaled = {n: 7 * t for n, t in nets.items()}
    network.fit_statistics(scaled)
    torch.testing.assert_close(network(scaled), answer, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("parameters", [2_000, 20_000])
def test_readers_are_sized_to_the_nearest_number_of_parameters(parameters):
    for name in ("mlp", "transformer", "statnn", "role_tied"):
        entry = READERS[name]
        width = entry.width_near(question(), parameters)
        counts = [
            parameter_count(entry.make(question(), units))
            for units in (width - entry.step, width, width + entry.step)
            if units > 0
        ]
        distances = [abs(count - parameters) for count in counts]
        assert width % entry.step == 0
        assert min(distances) == abs(parameter_count(entry.make(question(), width)) - parameters)


def test_a_seed_decides_the_initial_weights():
    first, again, other = (made("dws", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_readers_without_the_head_that_is_asked_for_are_refused():
    with pytest.raises(ExperimentError, match="StatNN has no equivariant head"):
        check_readers(["mlp", "statnn"], question("equivariant"))
    with pytest.raises(UnknownNameError, match="Did you mean 'dws'"):
        check_readers(["dwss"], question())


def test_an_ablated_network_does_not_see_what_was_left_out():
    """Without B2W and B2B nothing of the biases reaches the answer."""
    network = without(question(), 3, torch.Generator().manual_seed(0), ["b2w", "b2b"]).double()
    for layer in [network.lift, *(layer.linear for layer in network.layers)]:
        for sector_bias in layer.parameters():
            assert sector_bias.isfinite().all()
    nets = random_nets(SPEC, 3)
    other = {n: t + 1.0 if n.endswith("bias") else t for n, t in nets.items()}
    # What a residual connection carries of the biases stays, so look before the first: at the lift.
    lifted = [network.lift(network.fourier(network.layout.enter(each))) for each in (nets, other)]
    for one, two in zip(*lifted, strict=True):
        torch.testing.assert_close(one, two)
    whole = made("dws")
    lifted = [whole.lift(whole.fourier(whole.layout.enter(each))) for each in (nets, other)]
    assert any(not torch.allclose(one, two) for one, two in zip(*lifted, strict=True))


def test_the_statistics_are_those_of_each_tensor():
    nets = random_nets(SPEC, 3)
    found = weight_statistics(question(), nets).view(3, len(nets), 7)
    for i, tensor in enumerate(nets.values()):
        flat = tensor.flatten(1)
        torch.testing.assert_close(found[:, i, 0], flat.mean(1))
        torch.testing.assert_close(found[:, i, 2], flat.amin(1))
        torch.testing.assert_close(found[:, i, 6], flat.amax(1))
    assert flatten(question(), nets).shape == (3, SIREN.parameter_count)


def test_products_of_a_neurons_weights_are_written_out_and_untouched_by_scaling():
    nets = random_nets(SPEC, 3)
    first, bias, last, _ = neuron_products(SPEC, nets)
    outgoing = nets["2.weight"][:, :, 2].square().mean(1).sqrt()
    torch.testing.assert_close(first[:, 2], nets["0.weight"][:, 2].square().mean(1).sqrt() * outgoing)
    torch.testing.assert_close(bias[:, 2], nets["0.bias"][:, 2].abs() * outgoing)
    assert last.shape == (3, 3)
    group = next(name for name in SPEC.groups if ("0.bias", 0) in SPEC.occurrences[name])
    same = scaled(SPEC, nets, {group: torch.linspace(0.1, 3, 15).view(3, 5).double()})
    for one, other in zip(neuron_products(SPEC, same)[:2], (first, bias), strict=True):
        torch.testing.assert_close(one, other)
    # Without the way out nothing would stay.
    assert not torch.allclose(same["0.bias"], nets["0.bias"], rtol=1e-2)


def test_neurons_of_residual_nets_with_norms_have_products_and_joined_axes_none():
    spec = SPECS["resnet"]
    nets = random_nets(spec, 3)
    assert all(bool((each > 0).all()) for each in neuron_products(spec, nets))
    assert len(neuron_products(concatenated(), random_nets(concatenated(), 3))) == 0


def test_one_net_of_huge_weights_leaves_the_others_apart():
    nets = random_nets(SPEC, 50)
    nets = {name: torch.cat([tensor[:-1], 30 * tensor[-1:]]) for name, tensor in nets.items()}
    spreads = []
    for name in ("statnn", "neuron_statistics"):
        network = made(name)
        network.fit_statistics(nets)
        seen = []
        with network.layers.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0])):
            network(nets)
        spreads.append(seen[0][:-1, 1].std())
    assert spreads[1] > 5 * spreads[0]


def test_parameters_of_roles_that_the_nets_lack_do_not_count_and_change_no_answer():
    network, nets = made("role_tied_readout"), random_nets(SPEC, 5)
    answer = network(nets)
    answer.square().sum().backward()
    reached = 0
    with torch.no_grad():
        for parameter in network.parameters():
            idle = torch.ones_like(parameter, dtype=torch.bool)
            if parameter.grad is not None:
                idle = parameter.grad == 0
            parameter[idle] += 7.0
            reached += int((~idle).sum())
        assert torch.equal(network(nets), answer)
    total = sum(p.numel() for p in network.parameters())
    assert parameter_count(network) == reached < 0.5 * total


def read_by_the_head(network, nets):
    seen = []
    with network.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        network(nets)
    return seen[0]


def test_the_role_tied_head_reads_what_differs_from_net_to_net():
    """Pooled tokens enter the head with mean 0 and spread 1 over the zoo, however little they differ."""
    network, nets = made("role_tied"), random_nets(SPEC, 50)
    network.fit_statistics(nets)
    read = read_by_the_head(network.eval(), nets)
    torch.testing.assert_close(read.mean(0), torch.zeros_like(read[0]), atol=1e-6, rtol=0)
    varying = network.pooled_scale.running_var > 1e-4
    spread = read.std(0, correction=0)[varying]
    torch.testing.assert_close(spread, torch.ones_like(spread), atol=1e-3, rtol=0)
    assert varying.float().mean() > 0.5


def test_the_role_tied_head_follows_a_trunk_that_drifts():
    network, nets = made("role_tied"), random_nets(SPEC, 50)
    network.fit_statistics(nets)
    with torch.no_grad():
        for parameter in network.network.parameters():
            parameter += 0.3
    assert read_by_the_head(network.eval(), nets).abs().mean() > 3
    read = read_by_the_head(network.train(), nets)
    torch.testing.assert_close(read.mean(0), torch.zeros_like(read[0]), atol=1e-6, rtol=0)
    assert read.abs().mean() < 1


def test_a_batch_of_one_net_is_read_in_training_too():
    network, nets = made("role_tied"), random_nets(SPEC, 5)
    network.fit_statistics(nets)
    one = {name: tensor[:1] for name, tensor in nets.items()}
    torch.testing.assert_close(network.train()(one), network.eval()(one))
