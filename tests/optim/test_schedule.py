"""The built-in schedule."""

import itertools

import pytest
import torch

from nfopt.errors import OptimizerError
from nfopt.optim.schedule import FINAL, Schedule, built_in_schedule


def test_it_rises_then_falls_to_the_final_step_size_and_stays_there() -> None:
    schedule = Schedule(1000)
    factors = [schedule.factor(step) for step in range(1200)]
    top = factors.index(max(factors))
    assert top == 19
    assert all(a < b for a, b in itertools.pairwise(factors[: top + 1]))
    assert all(a >= b for a, b in itertools.pairwise(factors[top:]))
    assert factors[999] == pytest.approx(FINAL * (450 / 1300) ** 0.5)
    assert factors[1199] == factors[999]


def test_tensor_and_python_schedules_agree() -> None:
    schedule = Schedule(37)
    for step in range(37):
        progress = torch.tensor(schedule.progress(step), dtype=torch.float64)
        age = torch.tensor(step + 1.0, dtype=torch.float64)
        assert float(built_in_schedule(progress, age)) == pytest.approx(schedule.factor(step), rel=1e-12)


def test_it_is_linear_but_for_the_age_of_the_training_up_to_the_last_measured() -> None:
    short, long, longest = (Schedule(total).factor(total // 2 - 1) for total in (300, 3_000, 60_000))
    assert short == pytest.approx(0.5)  # half-way, at the age at which the root is 1
    assert long == pytest.approx(0.5 * (450 / 1_800) ** 0.5)
    assert longest == pytest.approx(0.5 * (450 / 5_300) ** 0.5) == Schedule(600_000).factor(299_999)


def test_without_an_end_the_step_size_stays_constant_after_warm_up() -> None:
    schedule = Schedule(None)
    assert schedule.factor(0) == pytest.approx(0.01)
    assert schedule.factor(99) == schedule.factor(10**6) == 1.0


@pytest.mark.parametrize("total", [0, -3, 2.5, True, "many"])
def test_a_total_that_is_no_positive_integer_is_refused(total: object) -> None:
    with pytest.raises(OptimizerError, match="total_steps"):
        Schedule(total)  # type: ignore[arg-type]
