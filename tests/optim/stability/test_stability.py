"""Stress: far from what it was meta-trained on, nfopt stays finite and does not end behind AdamW.

A handful of the cases runs by default, all of them with -m stress. What is known not to hold is a strict
xfail with its figures; `python -m tests.benchmarks.stability` prints the whole table.
"""

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from torch.nn import functional

from tests.optim.stability.cases import CASES, REAL_CASES
from tests.optim.stability.contest import ADAMW, CONTESTANTS, Case, Outcome, train, violations
from tests.optim.stability.problems import Problem, kill_first_layer

BY_NAME = {case.name: case for case in (*CASES, *REAL_CASES)}


def cases() -> list:
    found = []
    for case in BY_NAME.values():
        for contestant in CONTESTANTS:
            marks = [] if case.fast else [pytest.mark.stress]
            if case in REAL_CASES:
                marks.append(pytest.mark.data)
            if reason := case.fails.get(contestant):
                marks.append(pytest.mark.xfail(strict=True, reason=reason, raises=AssertionError))
            found.append(pytest.param(case, contestant, marks=marks, id=f"{case.name}-{contestant}"))
    return found


@lru_cache(maxsize=2)
def adamw(name: str) -> Outcome:
    return train(BY_NAME[name], ADAMW)


@pytest.mark.parametrize(("case", "contestant"), cases())
def test_nfopt_stays_finite_and_does_not_end_above_its_start_or_behind_adamw(
    case: Case, contestant: str
) -> None:
    assert violations(case, adamw(case.name), train(case, contestant)) == []


# The suite itself


def test_every_case_has_a_name_of_its_own_and_known_failures_name_a_contestant() -> None:
    assert len(BY_NAME) == len(CASES) + len(REAL_CASES)
    assert all(set(case.fails) <= set(CONTESTANTS) for case in BY_NAME.values())


@pytest.mark.parametrize(
    ("final", "broken"),
    [
        (float("nan"), "final loss is nan"),
        (float("inf"), "final loss is inf"),
        (2.4, "above its start 2.300"),
        (1.06, r"AdamW at 1.000"),
    ],
)
def test_outcomes_that_break_the_claim_are_rejected(final: float, broken: str) -> None:
    case, reference = Case("some", margin=0.05), Outcome(2.3, 1.0)
    assert any(broken in found for found in violations(case, reference, Outcome(2.3, final)))
    assert violations(case, reference, Outcome(2.3, 1.04)) == []


def test_a_step_size_a_thousand_times_too_large_is_rejected() -> None:
    case = Case("too large", steps=20, lr=1000.0)
    assert violations(case, train(case, ADAMW), train(case, "nominal"))


def test_every_contestant_gets_the_same_start_and_the_same_batches() -> None:
    problem = Problem(batch_images=13)
    first, second = (list(problem.start().parameters()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for a, b in zip(problem.batches(5), problem.batches(5), strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
    other = replace(problem, seed=1)
    assert not torch.equal(first[0], next(other.start().parameters()))
    assert not torch.equal(next(other.batches(1)).labels, next(problem.batches(1)).labels)


def test_a_dead_layer_has_no_gradient_and_noise_flips_labels() -> None:
    problem = Problem(tamper=kill_first_layer)
    model, batch = problem.start(), next(problem.batches(1))
    functional.cross_entropy(model(batch.images), batch.labels).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert [bool(grad.any()) for grad in grads] == [False, False, False, True, True, True]
    clean, noisy = (next(Problem(label_noise=noise).batches(1)) for noise in (0.0, 0.5))
    assert 0.3 < (clean.labels != noisy.labels).float().mean() < 0.7
