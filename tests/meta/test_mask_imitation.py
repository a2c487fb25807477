"""Imitation of magnitude pruning: its loss is a likelihood, and the network learns what decides survival."""

import math

import pytest
import torch
from torch import Tensor

from nfopt.errors import DataError, NfoptError
from nfopt.meta.mask_imitation import ImitationConfig, Ticket, imitate, imitation_loss
from nfopt.meta.mask_tasks import MaskTask, surviving_rounds
from nfopt.pruning.copies import CopiesConfig
from nfopt.pruning.neural import MaskNetwork, MaskNetworkConfig, MaskProposal, read_model

TASK = MaskTask(
    "digits", options={"hidden": [7, 5]}, training=CopiesConfig(12, 13), score_batches=2, batch_factor=1
)
SMALL = MaskNetworkConfig(channels=5, element_channels=3, look_ahead_steps=3)


def inputs_of(seed=0):
    context = TASK.context(seed, TASK.spec())
    return context, read_model(context, look_ahead_steps=3, look_ahead_lr=3e-3)


def ticket(survived):
    context, inputs = inputs_of()
    magnitudes = {name: p.detach().abs() for name, p in context.parameters.items()}
    return Ticket(inputs, magnitudes, {name: survived(name, p) for name, p in magnitudes.items()})


def uniform(found: Ticket) -> MaskProposal:
    """The proposal that makes every weight equally likely to survive."""
    ranking: dict[str, Tensor] = {name: -m.log() for name, m in found.magnitudes.items()}
    return MaskProposal(ranking, {})


def test_the_loss_is_zero_for_chance_and_log_of_the_share_for_certainty():
    found = ticket(lambda name, m: (m > m.median()).long())
    assert float(imitation_loss(uniform(found), found)) == pytest.approx(0.0, abs=1e-5)
    sure = {n: r + 30.0 * found.survived[n] for n, r in uniform(found).ranking.items()}
    shares = [math.log(float((s > 0).float().mean())) for s in found.survived.values()]
    expected = sum(shares) / len(shares)
    assert float(imitation_loss(MaskProposal(sure, {}), found)) == pytest.approx(expected, abs=1e-4)


def test_a_ticket_without_survivors_is_refused():
    found = ticket(lambda name, m: torch.zeros(m.shape, dtype=torch.long))
    with pytest.raises(NfoptError, match="nothing to imitate"):
        imitation_loss(uniform(found), found)


def test_the_network_learns_that_small_weights_survive_against_its_first_belief():
    found = ticket(lambda name, m: (m < m.quantile(0.3)).long())
    network = MaskNetwork(SMALL, torch.Generator().manual_seed(0))
    losses = imitate(network, {"task": [found]}, ImitationConfig(60, lr=3e-2))
    assert losses[0] > 0.1
    assert losses[-1] < -0.3


def test_a_stopped_imitation_goes_on_to_the_same_bits(tmp_path):
    class StoppedError(Exception):
        pass

    def stop(progress):
        if progress.done == 28:
            raise StoppedError

    found = {"task": [ticket(lambda name, m: (m > m.median()).long())]}
    config = ImitationConfig(31)

    def fresh():
        return MaskNetwork(SMALL, torch.Generator().manual_seed(0))

    whole, broken, resumed = fresh(), fresh(), fresh()
    imitate(whole, found, config)
    with pytest.raises(StoppedError):
        imitate(broken, found, config, state_file=tmp_path / "state", progress=stop)
    losses = imitate(resumed, found, config, state_file=tmp_path / "state")
    assert len(losses) == 31
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_what_survives_iterative_pruning_is_nested_and_has_the_asked_counts():
    survived = surviving_rounds(TASK, [0, 1], [0.5, 0.2])
    assert len(survived) == 2
    for each in survived:
        total = sum(rounds.numel() for rounds in each.values())
        for number, density in ((1, 0.5), (2, 0.2)):
            assert sum(int((rounds >= number).sum()) for rounds in each.values()) == round(density * total)
    assert any(not torch.equal(survived[0][name], survived[1][name]) for name in survived[0])


def test_held_out_data_are_refused():
    with pytest.raises(DataError, match="held out"):
        MaskTask("fashion_mnist").data()


def test_what_is_frozen_stays_and_the_exchange_beside_it_learns():
    found = ticket(lambda name, m: (m < m.quantile(0.3)).long())
    config = MaskNetworkConfig(channels=5, element_channels=3, look_ahead_steps=3, added_exchange=True)
    network = MaskNetwork(config, torch.Generator().manual_seed(0))
    network.begin_at(MaskNetwork(MaskNetworkConfig(channels=5, pointwise=True)))
    before = {name: value.clone() for name, value in network.ranking.pointwise.state_dict().items()}
    losses = imitate(network, {"task": [found]}, ImitationConfig(60, lr=3e-2, weight_decay=1e-2))
    assert losses[-1] < losses[0] - 0.3
    assert all(torch.equal(v, before[n]) for n, v in network.ranking.pointwise.state_dict().items())
