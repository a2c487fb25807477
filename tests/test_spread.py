import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import sem

from nfopt.spread import paired, spread

NUMBERS = st.lists(st.floats(-100, 100), min_size=2, max_size=9)


@given(NUMBERS)
def test_the_error_is_scipys_standard_error(values):
    found = spread(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert found.error == pytest.approx(sem(values), abs=1e-9)


@given(NUMBERS, st.floats(-100, 100))
def test_what_all_seeds_share_cancels_in_paired_differences(values, shift):
    found = paired([value + shift for value in values], values)
    assert found.mean == pytest.approx(shift, abs=1e-9)
    assert found.error == pytest.approx(0, abs=1e-9)


def test_one_seed_has_no_error_and_a_number_that_is_none_has_no_mean():
    assert spread([0.5]).error is None and f"{spread([0.5]).times(100):.1f}" == "50.0"
    assert f"{spread([0.25, 0.75]).times(100):+.1f}" == "+50.0±25.0"
    assert math.isnan(spread([0.5, math.inf]).mean)
