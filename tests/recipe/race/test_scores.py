"""Scores of a race against hand-counted ones; nothing is left out unseen."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfopt.recipe.compare.comparison import Method
from nfopt.recipe.inputs import DataOptions, ModelOptions
from nfopt.recipe.optimizers import AdamWOptions
from nfopt.recipe.race.heat import Heat, RaceTask
from nfopt.recipe.race.scores import HeatResult, geometric_mean, mean_and_error, overall
from nfopt.recipe.race.tables import planned_table
from nfopt.training import Curve

DIVERGED = Curve([0], [2.0], [2.0], {}, diverged_at=5)


def curve(*val_loss, test=None):
    losses = {"train": val_loss[-1], "val": val_loss[-1], "test": val_loss[-1] if test is None else test}
    final = {split: {"loss": loss, "accuracy": 0.5} for split, loss in losses.items()}
    return Curve([5 * i for i in range(len(val_loss))], list(val_loss), list(val_loss), final)


def heat(name="toy", total_steps=20, evaluations=4):
    task = RaceTask(
        data=DataOptions(name="digits"),
        model=ModelOptions(name="mlp"),
        total_steps=(total_steps,),
        evaluations=evaluations,
    )
    return Heat(name, task, total_steps, "product", (100,), (0, 1), "cpu")


def result(name="toy", *, missing=None, **runs):
    options = AdamWOptions(name="adamw")
    methods = {key: Method(key, key.upper(), options, (), tuple(found)) for key, found in runs.items()}
    return HeatResult(heat(name), methods, missing or {}, unreached_factor=2.0)


def test_steps_are_counted_to_the_first_look_at_or_below_the_target_seed_by_seed():
    found = result(
        ref=[curve(9, 5, 3, 2, 1), curve(9, 2, 3, 3, 2)], m=[curve(9, 1, 5, 5, 5), curve(9, 3, 2, 9, 9)]
    )
    pace = found.pace("m", "ref")
    assert pace.steps == (5, 10)
    # The reference passes its own final loss of 2 at step 5 already, and its fraction is still 1.
    assert pace.fractions == (5 / 20, 10 / 5)
    assert found.pace("ref", "ref").fractions == (1.0, 1.0)
    assert pace.mean == pytest.approx(math.sqrt(0.25 * 2))


def test_a_target_that_is_never_reached_counts_and_is_counted():
    found = result(ref=[curve(9, 5, 3, 2, 1)] * 2, m=[curve(9, 9, 9, 9, 9), DIVERGED])
    pace = found.pace("m", "ref")
    assert (pace.steps, pace.fractions, pace.unreached) == ((None, None), (2.0, 2.0), 2)


def test_without_a_target_a_seed_is_left_out_and_counted():
    pace = result(ref=[DIVERGED, curve(9, 5, 3, 2, 1)], m=[curve(9, 1, 1, 1, 1)] * 2).pace("m", "ref")
    assert (pace.fractions, pace.untargeted, pace.unreached) == ((None, 0.25), 1, 0)
    assert result(ref=[DIVERGED] * 2, m=[curve(1, 1, 1, 1, 1)] * 2).pace("m", "ref").mean is None


def test_a_target_that_the_untrained_net_meets_takes_one_interval():
    found = result(ref=[curve(1, 5, 3, 2, 1)] * 2, m=[curve(1, 1, 1, 1, 1)] * 2)
    assert found.pace("m", "ref").steps == (0, 0)
    assert found.pace("m", "ref").fractions == (1.0, 1.0)


def test_a_method_that_is_not_through_has_no_scores():
    found = result(ref=[curve(2, 1)] * 2, missing={"m": 3})
    assert found.pace("m", "ref") is None
    assert found.difference("m", "ref", "val") is None
    assert found.difference("ref", "m", "val") is None


def planned(**shares):
    options = AdamWOptions(name="adamw")
    return {
        key: {share: Method(key, key, options, (), tuple(runs)) for share, runs in found.items()}
        for key, found in shares.items()
    }


def test_the_planned_length_is_the_least_from_which_on_every_one_ends_at_the_target():
    low, high = curve(9, 1.0), curve(9, 1.5)
    found = result(ref=[curve(9, 8, 7, 6, 1.2)] * 2, m=[low, high])
    lengths = planned(m={0.25: [low, low], 0.5: [high, low], 0.75: [low, low]})
    found = replace(found, planned=lengths)
    pace = found.planned_pace("m", "ref")
    # The first seed is below the target at a quarter too, but not at a half; the second not at full length.
    assert (pace.steps, pace.fractions, pace.unreached) == ((15, None), (0.75, 2.0), 1)
    assert overall([found], "m", "ref", planned=True).mean == pytest.approx(math.sqrt(0.75 * 2))
    assert found.planned_pace("ref", "ref") is None
    table = planned_table([found], ["m", "ref"], "ref", {"m": "mine", "ref": "theirs"})
    assert table.columns == ("", "mine")
    assert table.rows[0] == ("toy-20", "1.22 (1)")


def test_a_planned_training_that_diverged_is_not_there_and_one_without_a_target_is_left_out():
    low = curve(9, 1.0)
    found = result(ref=[curve(9, 1.2), DIVERGED], m=[low, low])
    found = replace(found, planned=planned(m={0.5: [DIVERGED, low]}))
    assert found.planned_pace("m", "ref").fractions == (1.0, None)
    assert planned_table([result(ref=[low], m=[low])], ["m"], "ref", {"m": "m", "ref": "r"}) is None


def test_differences_are_paired():
    found = result(a=[curve(9, 1), curve(9, 5)], b=[curve(9, 2), curve(9, 7)])
    difference = found.difference("a", "b", "val")
    assert difference.mean == pytest.approx(-1.5)
    assert difference.error == pytest.approx(0.5)
    assert difference.certain
    assert found.difference("a", "b", "val", math.log).mean == pytest.approx(
        (math.log(1 / 2) + math.log(5 / 7)) / 2
    )


def test_a_diverged_seed_makes_a_difference_unknown_and_never_certain():
    difference = result(a=[DIVERGED, curve(9, 1)], b=[curve(9, 2)] * 2).difference("a", "b", "test")
    assert difference.mean is None
    assert not difference.certain


def test_the_reports_of_test_and_validation_loss_are_not_mixed_up():
    found = result(a=[curve(9, 1, test=4.0)] * 2, b=[curve(9, 2, test=3.0)] * 2)
    assert found.difference("a", "b", "val").mean == -1
    assert found.difference("a", "b", "test").mean == 1


def test_one_seed_has_no_error():
    assert mean_and_error([2.0]).error is None


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=7), st.floats(0.1, 10))
def test_the_geometric_mean_scales_and_lies_between(values, factor):
    mean = geometric_mean(values)
    assert min(values) * 0.999 <= mean <= max(values) * 1.001
    assert geometric_mean([factor * value for value in values]) == pytest.approx(factor * mean)


def test_the_overall_pace_counts_each_task_once_and_says_which():
    fast = result("a", ref=[curve(9, 5, 3, 2, 1)] * 2, m=[curve(9, 1, 1, 1, 1)] * 2)
    slow = result("b", ref=[curve(9, 1, 1, 1, 1)] * 2, m=[curve(9, 9, 9, 9, 9)] * 2)
    absent = result("c", ref=[curve(9, 1)] * 2, missing={"m": 1})
    found = overall([fast, slow, absent], "m", "ref")
    assert found.mean == pytest.approx(math.sqrt(0.25 * 8))  # twice 20 steps over the reference's 5
    assert found.heats == ("a-20", "b-20")
    assert (found.unreached, found.seeds, found.untargeted) == (2, 4, 0)
    assert overall([fast, slow], "m", "ref", {"a-20": 3.0}).mean == pytest.approx(0.75)
    assert overall([absent], "m", "ref").mean is None
