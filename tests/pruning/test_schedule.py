from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nfopt.errors import PruningError
from nfopt.pruning import GradualPruning, SparsitySchedule
from tests.pruning.nets import batches, mlp

DATA = batches(4)


@given(st.sampled_from(["linear", "cubic"]), st.floats(0, 1), st.integers(0, 50), st.integers(0, 50))
def test_a_schedule_starts_and_ends_where_it_says_and_never_rises(shape, final, start, length):
    schedule = SparsitySchedule(final, start + length, start, shape=shape)
    densities = [schedule.density_at(step) for step in range(start + length + 3)]
    assert densities[:start] == [1.0] * start
    assert densities[start + length :] == [final] * 3
    assert all(later <= earlier + 1e-15 for earlier, later in pairwise(densities))


def test_the_cubic_is_that_of_zhu_and_gupta():
    schedule = SparsitySchedule(0.1, 10, initial_density=0.9)
    # s = s_f + (s_i - s_f) (1 - t)^3 with s_i = 0.1, s_f = 0.9, t = 4 / 10.
    assert schedule.density_at(4) == pytest.approx(1 - (0.9 + (0.1 - 0.9) * 0.6**3))
    assert SparsitySchedule(0.1, 10, shape="linear").density_at(5) == pytest.approx(0.55)


def test_weights_are_pruned_every_so_often_and_at_the_end():
    schedule = SparsitySchedule(0.1, 10, 3, every=4)
    assert [step for step in range(20) if schedule.is_due(step)] == [3, 7, 10]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"final_density": 1.5, "end_step": 3}, "between 0 and 1"),
        ({"final_density": 0.5, "end_step": 3, "initial_density": 0.2}, "cannot rise"),
        ({"final_density": 0.5, "end_step": 3, "start_step": 4}, "0 <= start_step <= end_step"),
        ({"final_density": 0.5, "end_step": 3, "every": 0}, "at least one step"),
        ({"final_density": 0.5, "end_step": 3, "shape": "square"}, "give linear or cubic"),
    ],
)
def test_bad_schedules_are_refused(arguments, message):
    with pytest.raises(PruningError, match=message):
        SparsitySchedule(**arguments)


def run(pruning, model, optimizer, steps, counts, masks):
    for step in range(*steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(DATA[step % 4][0]), DATA[step % 4][1]).backward()
        optimizer.step()
        pruning.step()
        counts.append(int(sum((model.get_parameter(n) != 0).sum() for n in ("0.weight", "2.weight"))))
        masks.append(pruning.mask)


def test_gradual_pruning_follows_the_schedule_exactly_and_what_is_pruned_stays_so():
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = SparsitySchedule(0.25, 8, 2, every=3)
    pruning = GradualPruning(model, optimizer, schedule, exclude=["4.*"])
    assert pruning.mask is None
    counts, masks = [], []
    run(pruning, model, optimizer, (0, 10), counts, masks)
    expected = {2: 2, 3: 2, 4: 2, 5: 5, 6: 5, 7: 5, 8: 8, 9: 8, 10: 8}
    for step, due in expected.items():
        assert counts[step - 1] == round(schedule.density_at(due) * 112)
    assert masks[-1].intersection(masks[4]) == masks[-1]
    assert masks[-1].density == 0.25


def test_a_resumed_pruning_goes_on_to_the_same_weights():
    def made():
        model = mlp()
        return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    schedule = SparsitySchedule(0.25, 8, 2, every=3)
    model, optimizer = made()
    run(GradualPruning(model, optimizer, schedule), model, optimizer, (0, 10), [], [])
    first, first_optimizer = made()
    pruning = GradualPruning(first, first_optimizer, schedule)
    run(pruning, first, first_optimizer, (0, 6), [], [])
    second, second_optimizer = made()
    second.load_state_dict(first.state_dict())
    second_optimizer.load_state_dict(first_optimizer.state_dict())
    resumed = GradualPruning(second, second_optimizer, schedule)
    resumed.resume(pruning.steps_done, pruning.mask)
    run(resumed, second, second_optimizer, (6, 10), [], [])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), second.parameters(), strict=True))
