"""Tuning: a search tries as many settings as it says, keeps the best, and never asks for what is known."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfopt.recipe.optimizers import AdamWOptions
from nfopt.recipe.race.search import candidate_count, look, mean_or_infinity

GRIDS = st.fixed_dictionaries(
    {"lr": st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.7]), min_size=1, max_size=4)},
    optional={
        "weight_decay": st.lists(st.sampled_from([0.0, 0.01, 0.1]), min_size=1, max_size=3),
        "schedule": st.lists(st.sampled_from(["constant", "linear", "cosine"]), min_size=1, max_size=3),
    },
)
SEARCHES = st.sampled_from(["product", "coordinate"])


def key(options):
    return options.model_dump_json()


def searched(options, search, loss):
    """Run a search to its end; returns it with every setting in the order in which it was asked for."""
    asked = []
    known = {}
    while True:
        state = look(options, search, lambda o: known.get(key(o)))
        if state.chosen is not None:
            return state, asked
        assert state.wanted
        for wanted in state.wanted:
            assert key(wanted) not in known
            known[key(wanted)] = loss(wanted)
            if key(wanted) not in asked:
                asked.append(key(wanted))


@given(GRIDS, SEARCHES, st.randoms(use_true_random=False))
def test_the_count_is_known_beforehand_whatever_the_losses_are(grids, search, random):
    options = AdamWOptions(name="adamw", tune=grids)
    state, asked = searched(options, search, lambda _: random.random())
    assert len(asked) == candidate_count(options, search) == len(state.tried)


@given(GRIDS, SEARCHES, st.randoms(use_true_random=False))
def test_nothing_that_was_tried_is_better_than_what_is_chosen(grids, search, random):
    losses = {}
    options = AdamWOptions(name="adamw", tune=grids)
    state, asked = searched(options, search, lambda o: losses.setdefault(key(o), random.random()))
    assert losses[key(state.chosen)] == min(losses[name] for name in asked)
    assert {key(o): loss for o, loss in state.tried} == {name: losses[name] for name in asked}


@given(GRIDS)
def test_the_product_search_asks_for_every_combination_at_once(grids):
    options = AdamWOptions(name="adamw", tune=grids)
    wanted = {key(o) for o in look(options, "product", lambda _: None).wanted}
    combinations = itertools.product(*grids.values())
    assert wanted == {key(options.varied(**dict(zip(grids, values)))) for values in combinations}  # noqa: B905


def test_where_options_do_not_interact_both_searches_choose_the_same():
    options = AdamWOptions(
        name="adamw", weight_decay=0.1, tune={"lr": [0.1, 0.3, 0.5], "weight_decay": [0.0, 0.01, 0.1]}
    )

    def loss(o):
        return (o.lr - 0.3) ** 2 + (o.weight_decay - 0.01) ** 2

    chosen = [searched(options, search, loss)[0].chosen for search in ("product", "coordinate")]
    assert chosen[0] == chosen[1]
    assert (chosen[0].lr, chosen[0].weight_decay) == (0.3, 0.01)
    assert (candidate_count(options, "product"), candidate_count(options, "coordinate")) == (9, 5)


def test_the_coordinate_search_tries_the_second_option_at_the_best_of_the_first():
    options = AdamWOptions(
        name="adamw", weight_decay=0.0, tune={"lr": [0.1, 0.2], "weight_decay": [0.0, 0.1]}
    )
    _, asked = searched(options, "coordinate", lambda o: o.lr)
    assert asked[2:] == [key(options.varied(lr=0.1, weight_decay=0.1))]


def test_a_setting_that_diverged_is_chosen_only_if_all_did():
    options = AdamWOptions(name="adamw", tune={"lr": [0.1, 0.2]})
    assert searched(options, "product", lambda o: math.inf if o.lr < 0.2 else 9.0)[0].chosen.lr == 0.2
    assert searched(options, "product", lambda o: math.inf)[0].chosen.lr == 0.1


def test_without_a_grid_there_is_nothing_to_try():
    options = AdamWOptions(name="adamw", lr=0.3)
    state = look(options, "coordinate", lambda _: None)
    assert (state.wanted, state.chosen.lr, candidate_count(options, "coordinate")) == ((), 0.3, 0)


@pytest.mark.parametrize(("losses", "mean"), [([1.0, 3.0], 2.0), ([1.0, None], math.inf)])
def test_a_diverged_seed_makes_the_mean_infinite(losses, mean):
    assert mean_or_infinity(losses) == mean
