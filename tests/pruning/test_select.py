import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nfopt.errors import PruningError, UnknownNameError
from nfopt.pruning import erk_counts, select

SHAPES = {"a": (7, 5), "b": (11, 7, 3, 3), "c": (3, 11), "d": (2, 3)}


def scores(seed, *, levels=None):
    generator = torch.Generator().manual_seed(seed)
    draw = {name: torch.rand(shape, generator=generator) for name, shape in SHAPES.items()}
    return draw if levels is None else {name: (s * levels).floor() for name, s in draw.items()}


@given(st.integers(0, 99), st.floats(0, 1), st.sampled_from(["global", "erk"]), st.sampled_from([None, 2]))
def test_global_and_erk_keep_exactly_the_rounded_count_also_of_ties(seed, density, scope, levels):
    kept = select(scores(seed, levels=levels), density, scope)
    total = sum(math.prod(shape) for shape in SHAPES.values())
    assert sum(int(mask.sum()) for mask in kept.values()) == round(density * total)


@given(st.integers(0, 99), st.floats(0, 1), st.sampled_from([None, 2]))
def test_layer_scope_keeps_exactly_the_rounded_count_of_each(seed, density, levels):
    kept = select(scores(seed, levels=levels), density, "layer")
    assert all(int(mask.sum()) == round(density * mask.numel()) for mask in kept.values())


@given(st.integers(0, 99), st.floats(0, 1))
def test_nothing_that_is_pruned_scores_higher_than_what_is_kept(seed, density):
    drawn = scores(seed)
    kept = select(drawn, density, "global")
    inside = torch.cat([drawn[name][mask] for name, mask in kept.items()])
    outside = torch.cat([drawn[name][~mask] for name, mask in kept.items()])
    assert inside.numel() == 0 or outside.numel() == 0 or inside.min() >= outside.max()


def test_of_equal_scores_the_earlier_is_kept():
    kept = select({"a": torch.zeros(2, 3), "b": torch.zeros(5)}, 7 / 11)
    assert kept["a"].all()
    assert kept["b"].tolist() == [True, False, False, False, False]


@given(st.floats(0, 1), st.floats(0, 1))
def test_no_erk_count_falls_when_the_density_rises(first, second):
    low, high = sorted((first, second))
    below, above = erk_counts(SHAPES, low), erk_counts(SHAPES, high)
    assert all(below[name] <= above[name] <= math.prod(SHAPES[name]) for name in SHAPES)


def test_erk_densities_are_proportional_to_the_sum_of_dimensions_over_their_product():
    shapes = {"a": (100, 100), "b": (1000, 10)}
    counts = erk_counts(shapes, 0.1)  # weights 200 and 1010 of a budget of 2,000
    assert counts == {"a": round(2000 * 200 / 1210), "b": round(2000 * 1010 / 1210)}


def test_what_a_full_layer_cannot_take_goes_to_the_others():
    counts = erk_counts({"small": (2, 3), "wide": (100, 100)}, 0.5)
    assert counts == {"small": 6, "wide": 5003 - 6}


@given(st.integers(0, 99), st.sampled_from([(2, 4), (1, 4), (1, 2), (4, 4)]))
def test_n_of_m_keeps_the_best_n_of_every_m_neighbouring_inputs(seed, n_m):
    n, m = n_m
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        "linear": torch.rand(3, 8, generator=generator),
        "conv": torch.rand(5, 4, 3, 2, generator=generator),
    }
    kept = select(drawn, n / m, f"{n}:{m}")
    for name, values in drawn.items():
        for start in range(0, values.shape[1], m):
            block, mask = values[:, start : start + m], kept[name][:, start : start + m]
            assert bool((mask.sum(1) == n).all())
            lowest = block.masked_fill(~mask, 2.0).amin(1)
            highest = block.masked_fill(mask, -1.0).amax(1)
            assert bool((lowest >= highest).all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"a": torch.ones(3)}, 1.1), "between 0 and 1, not 1.1"),
        (({"a": torch.ones(3)}, -0.1), "between 0 and 1"),
        (({"a": torch.ones(3)}, float("nan")), "between 0 and 1"),
        (({"a": torch.ones(3, 6)}, 0.5, "2:4"), "groups of 4, which these do not have: a"),
        (({"a": torch.ones(3, 8)}, 0.5, "5:4"), "1 <= N <= M"),
        (({"a": torch.tensor([1.0, float("nan")])}, 0.5), "scores of a are not all finite"),
        (({"a": torch.tensor([1.0, float("inf")])}, 0.5), "scores of a are not all finite"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(PruningError, match=message):
        select(*arguments)


def test_an_unknown_scope_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match="Did you mean 'layer'"):
        select({"a": torch.ones(3)}, 0.5, "layers")
