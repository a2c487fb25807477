"""The verdict: each criterion is met, not met or unknown by hand-made results."""

import pytest

from nfopt.recipe.race.scores import Difference
from nfopt.recipe.race.verdict import MET, NOT_MET, UNKNOWN, Judge, pooled, verdict_table
from tests.recipe.race.test_scores import DIVERGED, curve, result

LABELS = {"nf": "nfopt", "adamw": "AdamW", "muon": "Muon", "nominal": "nominal"}
SLOW = [curve(9, 5, 3, 2, 1.0), curve(9, 5, 3, 2, 1.1)]
FAST = [curve(9, 1, 0.9, 0.6, 0.5), curve(9, 1, 0.9, 0.6, 0.6)]


def verdicts(*results):
    judge = Judge(results, "nf", ("adamw", "muon"), ("nominal",), LABELS)
    return {c.name: c for c in judge.criteria()}


def test_a_clear_winner_meets_every_criterion():
    found = verdicts(result(nf=FAST, adamw=SLOW, muon=SLOW, nominal=SLOW))
    assert [c.verdict for c in found.values()] == [MET] * 5
    assert not any(c.so_far for c in found.values())


def test_a_clear_loser_meets_none_but_stability():
    found = verdicts(result(nf=SLOW, adamw=FAST, muon=FAST, nominal=FAST))
    assert [c.verdict for c in found.values()] == [NOT_MET] * 4 + [MET]
    assert found["steps to AdamW's loss"].measured.endswith("2 of 2 seeds not there")
    assert "toy-20" in found["test loss beside AdamW"].measured


def test_an_equal_does_not_beat_its_ablation():
    found = verdicts(result(nf=SLOW, adamw=SLOW, muon=SLOW, nominal=SLOW))
    assert found["test loss beside AdamW"].verdict == MET
    assert found["test loss beside nominal"].verdict == NOT_MET


def test_divergence_is_behind_and_is_no_win():
    found = verdicts(result(nf=[DIVERGED, *FAST[1:]], adamw=SLOW, muon=SLOW, nominal=SLOW))
    assert found["test loss beside AdamW"].verdict == NOT_MET
    assert found["test loss beside nominal"].verdict == NOT_MET
    assert found["divergence in these trainings"].measured == "1 of 2 trainings"
    assert found["divergence in these trainings"].verdict == NOT_MET


def test_what_is_not_run_is_unknown_or_so_far():
    whole = result("a", nf=FAST, adamw=SLOW, nominal=SLOW, missing={"muon": 3})
    part = result("b", nf=FAST, missing={"adamw": 1, "muon": 3, "nominal": 1})
    found = verdicts(whole, part)
    assert found["steps to Muon's loss"].verdict == UNKNOWN
    assert (found["steps to AdamW's loss"].verdict, found["steps to AdamW's loss"].so_far) == (MET, True)
    rows = {row[0]: row[3] for row in verdict_table(list(found.values()), "nfopt").rows}
    assert rows["steps to AdamW's loss"] == "met, so far"
    assert rows["steps to Muon's loss"] == "unknown"


def test_the_pooled_error_is_that_of_a_mean_of_independent_tasks():
    found = pooled([Difference(1.0, 0.3), Difference(3.0, 0.4)])
    assert (found.mean, found.error) == (2.0, pytest.approx(0.25))
    assert pooled([Difference(1.0, 0.3), Difference(None, None)]).mean is None
    assert pooled([Difference(1.0, None)]).error is None
