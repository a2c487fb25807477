"""The learned mask: SynFlow where its heads are silent, equivariant where they speak."""

import copy

import pytest
import torch
from torch import nn

from nfopt.checkpoints import BUNDLED, load_checkpoint, save_checkpoint
from nfopt.errors import CheckpointError, PruningError
from nfopt.pruning import prune
from nfopt.pruning.neural import (
    MaskNetwork,
    MaskNetworkConfig,
    network_checkpoint,
    neural_score,
    propose,
    read_model,
    read_network,
)
from nfopt.pruning.neural.mask_network import CHECKPOINT_KIND, MOST, MOST_SHARE
from nfopt.pruning.prune import score_once
from nfopt.pruning.scores import ScoreContext
from nfopt.symmetry import trace_permutation_spec
from tests.pruning.nets import batches, cnn, mlp

SMALL = MaskNetworkConfig(channels=5, element_channels=3, look_ahead_steps=4, rounds=7)


def loud(config=SMALL, seed=0):
    """A network whose heads both speak."""
    draw = torch.Generator().manual_seed(seed)
    network = MaskNetwork(config, draw).double()
    with torch.no_grad():
        for parameter in (network.ranking.element_out.weight, network.allocation):
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return network.requires_grad_(False)


def context(model, data=None, **given):
    parameters = {n: p for n, p in model.named_parameters() if p.dim() > 1}
    kept = {name: torch.ones(p.shape, dtype=torch.bool) for name, p in parameters.items()}
    data = batches(dtype=torch.float64) if data is None else data
    spec = trace_permutation_spec(model, data[0][0])
    generator = torch.Generator().manual_seed(0)
    return ScoreContext(
        model, parameters, kept, generator, data, example_inputs=data[0][0], spec=spec, **given
    )


def proposal(network, model, data=None):
    return propose(network, read_model(context(model, data), look_ahead_steps=4, look_ahead_lr=3e-3))


@pytest.mark.parametrize("density", [0.5, 0.1])
def test_a_fresh_network_s_mask_is_synflow_s(density):
    network = MaskNetwork(SMALL, torch.Generator().manual_seed(0))
    for model, data in ((mlp(), batches()), (cnn(), [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))])):
        ours = prune(model, density, neural_score(network), batches=data, on_empty_layer="allow")
        theirs = prune(model, density, "synflow", rounds=SMALL.rounds, batches=data, on_empty_layer="allow")
        assert ours == theirs


def test_a_fresh_network_s_mask_is_synflow_s_also_where_a_norm_turns_the_flow_negative():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.ReLU(), nn.Linear(7, 3))
    ours, theirs = (
        prune(model, 0.4, s, rounds=r, batches=batches(), on_empty_layer="allow")
        for s, r in ((neural_score(MaskNetwork(SMALL)), 1), ("synflow", SMALL.rounds))
    )
    assert ours == theirs


def test_each_head_decides_its_own_thing_and_both_make_a_difference():
    model, network = mlp(dtype=torch.float64), loud()
    masks = {
        (r, a): prune(
            model,
            0.3,
            neural_score(network, ranking=r, allocation=a),
            batches=batches(dtype=torch.float64),
            on_empty_layer="allow",
        )
        for r in (True, False)
        for a in (True, False)
    }
    assert len(set(masks.values())) == 4
    assert masks[False, False] == prune(model, 0.3, "synflow", rounds=7, batches=batches(dtype=torch.float64))


def renumbered(model, order):
    """Renumber the first hidden layer."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.copy_(model[0].weight[order])
        other[0].bias.copy_(model[0].bias[order])
        other[2].weight.copy_(model[2].weight[:, order])
    return other


def test_renumbered_neurons_renumber_the_ranking_and_leave_the_shares_alone():
    # The features are float32; the rest is float64.
    model, network, order = mlp(dtype=torch.float64), loud(), torch.tensor([3, 1, 6, 0, 5, 2, 4])
    plain, moved = proposal(network, model), proposal(network, renumbered(model, order))
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(moved.ranking["0.weight"], plain.ranking["0.weight"][order], **close)
    torch.testing.assert_close(moved.ranking["2.weight"], plain.ranking["2.weight"][:, order], **close)
    torch.testing.assert_close(moved.ranking["4.weight"], plain.ranking["4.weight"], **close)
    for name, share in plain.allocation.items():
        torch.testing.assert_close(moved.allocation[name], share, **close)
    assert float(plain.ranking["0.weight"].std()) > 0.01


def test_the_pointwise_ablation_is_equivariant_and_deaf_to_the_other_weights():
    config = MaskNetworkConfig(channels=5, look_ahead_steps=0, rounds=3, pointwise=True)
    model, order, network = mlp(dtype=torch.float64), torch.tensor([3, 1, 6, 0, 5, 2, 4]), loud(config)
    plain, moved = proposal(network, model), proposal(network, renumbered(model, order))
    torch.testing.assert_close(
        moved.ranking["0.weight"], plain.ranking["0.weight"][order], rtol=1e-4, atol=1e-5
    )
    inputs = read_model(context(model), look_ahead_steps=0, look_ahead_lr=3e-3)
    before = network.raw_ranking(inputs)["2.weight"].clone()
    place = [block.tensor for block in inputs.features.plan.blocks].index("2.weight")
    inputs.features.elements[place][0] += 1.0
    after = network.raw_ranking(inputs)["2.weight"]
    assert torch.equal(before[1:], after[1:]) and not torch.equal(before[0], after[0])
    exchanging = loud()
    heard = exchanging.raw_ranking(inputs)["2.weight"].clone()
    inputs.features.elements[place][0] -= 1.0
    assert not torch.equal(exchanging.raw_ranking(inputs)["2.weight"][1:], heard[1:])


ADDED = MaskNetworkConfig(channels=5, element_channels=3, look_ahead_steps=0, rounds=3, added_exchange=True)


def test_an_exchange_that_is_added_says_what_the_pointwise_network_says_until_it_has_learned():
    model = mlp(dtype=torch.float64)
    network = MaskNetwork(ADDED, torch.Generator().manual_seed(1)).double()
    alone = loud(MaskNetworkConfig(channels=5, look_ahead_steps=0, rounds=3, pointwise=True))
    network.begin_at(alone)
    for name, ranking in proposal(alone, model).ranking.items():
        assert torch.equal(proposal(network, model).ranking[name], ranking)
    inputs = read_model(context(model), look_ahead_steps=0, look_ahead_lr=3e-3)
    with torch.no_grad():
        network.ranking.exchanging.element_out.weight.normal_(generator=torch.Generator().manual_seed(2))
    before = network.raw_ranking(inputs)["2.weight"].detach().clone()
    place = [block.tensor for block in inputs.features.plan.blocks].index("2.weight")
    inputs.features.elements[place][0] += 1.0
    assert not torch.equal(network.raw_ranking(inputs)["2.weight"][1:], before[1:])


def test_beginning_at_what_is_not_pointwise_or_of_other_width_is_refused():
    network = MaskNetwork(ADDED)
    wider = MaskNetwork(MaskNetworkConfig(channels=7, pointwise=True))
    for other, message in ((MaskNetwork(SMALL), "only at a pointwise"), (wider, "cannot begin at one of 7")):
        with pytest.raises(PruningError, match=message):
            network.begin_at(other)
    with pytest.raises(PruningError, match="only a network with added_exchange"):
        MaskNetwork(SMALL).begin_at(wider)
    with pytest.raises(PruningError, match="not both"):
        MaskNetworkConfig(pointwise=True, added_exchange=True)


def test_a_network_that_is_tied_to_positions_would_be_found_out():
    model, order = mlp(dtype=torch.float64), torch.tensor([3, 1, 6, 0, 5, 2, 4])
    plain = proposal(loud(), model).ranking["0.weight"] + torch.arange(7.0)[:, None]
    moved = proposal(loud(), renumbered(model, order)).ranking["0.weight"] + torch.arange(7.0)[:, None]
    assert not torch.allclose(moved, plain[order], rtol=1e-4, atol=1e-5)


def test_what_the_heads_say_is_bounded_and_centred():
    network = loud()
    network.gain.fill_(1e6)
    network.allocation.fill_(1e6)
    said = proposal(network, mlp(dtype=torch.float64))
    for values in said.ranking.values():
        assert abs(float(values.mean())) < 1e-9
        assert float(values.abs().max()) <= 2 * MOST
    assert all(abs(float(value)) <= MOST_SHARE for value in said.allocation.values())


def test_one_network_serves_other_widths_depths_and_kinds():
    network = loud().float()
    wide = nn.Sequential(nn.Linear(5, 11), nn.ReLU(), nn.Linear(11, 13), nn.ReLU(), nn.Linear(13, 3))
    pictures = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))]
    for model, data in ((mlp(), batches()), (wide, batches()), (cnn(), pictures)):
        mask = prune(model, 0.2, neural_score(network), batches=data, on_empty_layer="allow")
        assert mask.kept_count == round(0.2 * mask.total_count)


def test_without_a_density_the_worth_is_that_of_one_round_and_positive():
    model = mlp()
    names = ["0.weight", "2.weight", "4.weight"]
    found = score_once(model, names, neural_score(loud().float()), batches=batches())
    assert all(bool((values >= 0).all()) for values in found.values())
    fresh = MaskNetwork(SMALL)
    ours = score_once(model, names, neural_score(fresh), batches=batches())
    theirs = score_once(model, names, "synflow", batches=batches())
    for name in names:
        torch.testing.assert_close(ours[name], theirs[name])


def test_what_is_pruned_already_stays_out_of_the_look_ahead():
    model = mlp()
    start = prune(model, 0.5, "random")
    mask = prune(model, 0.25, neural_score(loud().float()), batches=batches(), start=start)
    assert mask.intersection(start) == mask


def test_without_batches_or_with_broken_ones_it_says_so():
    with pytest.raises(PruningError, match="'nf' needs batches="):
        prune(mlp(), 0.5, neural_score(loud()))
    inputs, targets = batches(1)[0]
    with pytest.raises(Exception, match=r"NaN|no finite numbers"):
        prune(mlp(), 0.5, neural_score(loud().float()), batches=[(inputs * float("nan"), targets)])


def test_a_network_comes_back_from_its_checkpoint_and_another_s_is_refused(tmp_path):
    network = loud().float()
    save_checkpoint(tmp_path / "own.safetensors", network_checkpoint(network, {"made": "here"}))
    read = read_network(str(tmp_path / "own.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), read.parameters(), strict=True))
    with pytest.raises(CheckpointError, match="kind 'update-rule'"):
        read_network("default")
    checkpoint = network_checkpoint(network, {})
    theta = {k: v for k, v in checkpoint.theta.items() if k != "gain"}
    broken = type(checkpoint)(checkpoint.kind, theta, checkpoint.config)
    with pytest.raises(CheckpointError, match="another version"):
        read_network(broken)
    with pytest.raises(PruningError, match=r"MaskNetworkConfig\.rounds is 0"):
        MaskNetworkConfig(rounds=0)


def test_the_bundled_network_is_small_intact_and_carries_a_card():
    checkpoint = load_checkpoint("mask", kind=CHECKPOINT_KIND)
    assert checkpoint.card and (BUNDLED / "mask.md").is_file()
    assert sum(value.numel() * value.element_size() for value in checkpoint.theta.values()) < 300_000
    assert prune(mlp(), 0.2, "nf", batches=batches()) != prune(mlp(), 0.2, "synflow", batches=batches())
