"""The search by trained loss: paired candidates, resumable, and led by what masks train to."""

import pytest
import torch

from nfopt.errors import NfoptError
from nfopt.meta import mask_search
from nfopt.meta.mask_search import (
    SEARCHED,
    SearchConfig,
    numbers_of,
    search,
    trained_losses,
    with_numbers,
)
from nfopt.meta.mask_tasks import MaskTask
from nfopt.pruning.copies import CopiesConfig
from nfopt.pruning.neural import MaskNetwork, MaskNetworkConfig

TASK = MaskTask(
    "digits", options={"hidden": [7, 5]}, training=CopiesConfig(10, 13), score_batches=2, batch_factor=1
)


def network():
    config = MaskNetworkConfig(channels=5, element_channels=3, look_ahead_steps=2, rounds=3)
    return MaskNetwork(config, torch.Generator().manual_seed(0))


def test_numbers_go_in_and_come_out():
    numbers = torch.arange(1.0, SEARCHED + 1)
    found = with_numbers(network(), numbers)
    assert float(found.gain.detach()) == 1.0
    assert torch.equal(numbers_of(found), numbers)


def test_equal_candidates_train_to_equal_losses_and_others_do_not():
    same, other = torch.zeros(SEARCHED), torch.full((SEARCHED,), 2.0)
    losses = trained_losses(network(), TASK, 3, [same, other, same], [0.5, 0.2])
    assert losses.shape == (3, 2)
    torch.testing.assert_close(losses[0], losses[2])
    assert not torch.allclose(losses[0], losses[1])


@pytest.fixture
def quadratic(monkeypatch):
    """Losses of a bowl around (2, 0, ..., 0) in the place of trainings."""
    least = torch.zeros(SEARCHED)
    least[0] = 2.0

    def losses(network, task, seed, candidates, densities, *, progress=None):
        return torch.stack([(x - least).square().sum() for x in candidates])[:, None]

    monkeypatch.setattr(mask_search, "trained_losses", losses)
    return least


def test_the_search_walks_to_where_the_trained_loss_is_least(quadratic):
    config = SearchConfig(generations=40, pairs=8, tasks_each=1, densities=(0.1,))
    start = numbers_of(network())
    found = search(network(), {"task": TASK}, config)
    assert (found - quadratic).norm() < 0.35 * (start - quadratic).norm()


def test_a_search_that_is_resumed_ends_at_the_same_numbers(quadratic):
    config = SearchConfig(generations=7, pairs=2, tasks_each=1, densities=(0.1,))
    states = []
    whole = search(network(), {"task": TASK}, config, keep=states.append)
    resumed = search(network(), {"task": TASK}, config, states[2])
    assert torch.equal(whole, resumed)


def test_no_generation_changes_nothing_and_nonsense_is_refused():
    assert torch.equal(search(network(), {"task": TASK}, SearchConfig(generations=0)), numbers_of(network()))
    with pytest.raises(NfoptError, match="densities in"):
        SearchConfig(densities=(0.0,))
    with pytest.raises(NfoptError, match="sigma and step > 0"):
        SearchConfig(sigma=0.0)
