import pytest

from nfopt.recipe.compare.comparison import Comparison, Method
from nfopt.recipe.optimizers import AdamWOptions
from nfopt.training import Curve


def curve(*val_loss):
    final = {split: {"loss": val_loss[-1], "accuracy": 0.5} for split in ("train", "val", "test")}
    return Curve([0, 5, 10][: len(val_loss)], list(val_loss), list(val_loss), final)


DIVERGED = Curve([0], [2.0], [2.0], {}, diverged_at=5)
OPTIONS = AdamWOptions(name="adamw", lr=0.1)


def method(key, *runs, tried=(0.1,)):
    candidates = tuple((AdamWOptions(name="adamw", lr=lr), 1.0) for lr in tried)
    return Method(key, key.upper(), OPTIONS, candidates, runs, ("lr",) if len(tried) > 1 else ())


def comparison(*methods):
    return Comparison("t", methods, methods[0].key, tuple(range(len(methods[0].runs))), 5)


def row(compared, key):
    seconds = {m.key: 2.0 for m in compared.methods} | {compared.reference: 1.0}
    return next(r for r in compared.table(seconds).rows if r[0] == key.upper())


def test_the_target_is_taken_seed_by_seed():
    compared = comparison(
        method("a", curve(3, 2, 1), curve(3, 1, 2)), method("b", curve(3, 1, 9), curve(2, 9, 9))
    )
    assert compared.targets == (1, 2)
    assert compared.steps_to_target(compared.methods[0]) == [10, 5]
    assert compared.steps_to_target(compared.methods[1]) == [5, 0]
    assert row(compared, "b")[1] == "2"  # the mean of 5 and 0, rounded half to even
    assert row(compared, "b")[-1] == "2.00x"


def test_seeds_that_never_reach_the_target_are_counted_and_not_averaged_away():
    compared = comparison(
        method("a", curve(3, 2, 1), curve(3, 2, 1)), method("b", curve(3, 1, 1), curve(3, 3, 3))
    )
    assert row(compared, "b")[1] == "5 (1/2)"
    none = comparison(method("a", curve(3, 2, 1)), method("b", curve(3, 3, 3)))
    assert row(none, "b")[1] == "never"


def test_a_diverged_reference_gives_no_target_and_a_diverged_seed_no_mean():
    compared = comparison(method("a", DIVERGED, curve(3, 2, 1)), method("b", curve(3, 1, 1), curve(3, 1, 1)))
    assert compared.targets == (None, 1)
    assert compared.steps_to_target(compared.methods[1]) == [None, 5]
    assert row(compared, "a")[1:6] == ("diverged", "", "1 of 2", "", "")


def test_the_spread_is_the_standard_deviation_and_one_seed_has_none():
    two = comparison(method("a", curve(3, 2, 1), curve(3, 2, 2)))
    assert row(two, "a")[3] == "1.500±0.707"
    assert row(comparison(method("a", curve(3, 2, 1))), "a")[3] == "1.000"


@pytest.mark.parametrize(
    ("tried", "at_edge"), [((0.01, 0.1, 1.0), False), ((0.1, 1.0), True), ((0.01, 0.1), True)]
)
def test_a_tuned_number_at_the_edge_of_what_was_tried_is_said(tried, at_edge):
    compared = comparison(method("a", curve(3, 2, 1), tried=tried))
    notes = " ".join(compared.table({"a": 1.0}).notes)
    assert f"the best of {len(tried)}" in notes
    assert ("at the edge" in notes) == at_edge
