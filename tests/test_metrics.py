import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nfopt.metrics import classification_scores, evaluate, steps_to_target


def test_uniform_logits_have_the_loss_log_classes():
    scores = classification_scores(torch.zeros(5, 7), torch.arange(5))
    assert scores.loss == pytest.approx(math.log(7))


@given(st.integers(0, 5))
def test_accuracy_is_the_share_of_hits(hits):
    labels = torch.tensor([0, 1, 2, 0, 1])
    predicted = torch.where(torch.arange(5) < hits, labels, (labels + 1) % 3)
    logits = nn.functional.one_hot(predicted, 3).double()
    assert classification_scores(logits, labels).accuracy == pytest.approx(hits / 5)


def test_a_logit_that_is_not_a_number_makes_the_loss_not_a_number():
    logits = torch.zeros(3, 5)
    logits[1, 2] = math.nan
    assert math.isnan(classification_scores(logits, torch.zeros(3, dtype=torch.long)).loss)


def test_evaluation_in_batches_is_that_in_one_and_uses_the_running_statistics():
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.BatchNorm1d(3)).train()
    images, labels = torch.randn(11, 1, 2, 3), torch.arange(11) % 3
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one, many = evaluate(model, images, labels), evaluate(model, images, labels, batch_size=5)
    assert one.loss == pytest.approx(many.loss)
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@given(st.lists(st.floats(0, 9), min_size=1, max_size=9), st.floats(0, 9))
def test_the_first_step_at_the_target_is_at_it_and_none_before_is(losses, target):
    steps = range(0, 7 * len(losses), 7)
    first = steps_to_target(steps, losses, target)
    reached = [step for step, loss in zip(steps, losses, strict=True) if loss <= target]
    assert first == (min(reached) if reached else None)


def test_a_loss_that_is_not_a_number_never_reaches_a_target():
    assert steps_to_target([0, 1], [math.nan, math.nan], 5.0) is None
