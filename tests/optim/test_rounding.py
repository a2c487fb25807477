"""Rounding at random, and momenta kept in bfloat16."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nfopt.errors import OptimizerError
from nfopt.optim.moments import MOMENTA, SECOND
from nfopt.optim.rounding import round_at_random
from tests.optim.loops import build, same, take_steps, weights
from tests.optim.models import learned_checkpoint, mlp


@given(st.floats(-(2.0**100), 2.0**100, width=32), st.integers(0, 2**31))
def test_a_number_goes_to_a_neighbour(number: float, seed: int) -> None:
    value = torch.full((97,), number)
    rounded = round_at_random(value, torch.Generator().manual_seed(seed)).float()
    nearest = value.bfloat16().float()
    step = torch.maximum(value.abs() * 2.0**-7, torch.tensor(1e-38))
    assert bool(((rounded - value).abs() <= step).all())
    if torch.equal(nearest, value):
        assert torch.equal(rounded, value)


def test_the_mean_of_many_roundings_is_the_number() -> None:
    draw = torch.Generator().manual_seed(0)
    value = torch.randn(41, generator=draw).repeat(20000, 1)
    error = (round_at_random(value, draw).double() - value).mean(0) / value[0].abs()
    # One rounding is off by at most 2^-7, and 20,000 of them by 2^-7 / sqrt(20,000) in the mean.
    assert float(error.abs().max()) < 5 * 2**-7 / 20000**0.5
    assert float((value[0].bfloat16().double() - value[0]).abs().max() / value[0].abs().max()) > 1e-4


def test_a_slow_average_does_not_stall() -> None:
    kept, plain = torch.ones(1000).bfloat16(), torch.ones(1000).bfloat16()
    draw = torch.Generator().manual_seed(0)
    for _ in range(1000):
        kept = round_at_random(torch.lerp(kept.float(), torch.zeros(1000), 0.001), draw)
        plain = torch.lerp(plain.float(), torch.zeros(1000), 0.001).bfloat16()
    assert float(kept.float().mean()) == pytest.approx(0.999**1000, rel=0.02)
    assert float(plain.float().mean()) == 1.0


def test_momenta_take_two_bytes_each_and_the_rest_stays_exact() -> None:
    model = mlp()
    optimizer = build(model, state_dtype=torch.bfloat16)
    take_steps(model, optimizer, 3)
    for entry in optimizer.state.values():
        for key, value in entry.items():
            assert value.dtype == (torch.bfloat16 if key in (*MOMENTA, SECOND) else torch.float32)


def test_a_training_with_halved_state_ends_where_the_full_one_does() -> None:
    ends = []
    for dtype in (None, torch.bfloat16):
        model = mlp()
        optimizer = build(model, total_steps=60, state_dtype=dtype, checkpoint="nominal")
        ends.append(take_steps(model, optimizer, 60))
    assert ends[0][-1] < 0.25 * ends[0][0]
    assert ends[1][-1] == pytest.approx(ends[0][-1], rel=0.1)
    assert ends[1] != ends[0]


def test_a_run_with_halved_state_repeats_and_resumes_to_the_bit() -> None:
    def begun() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = mlp()
        return model, build(model, state_dtype=torch.bfloat16, checkpoint=learned_checkpoint())

    (whole, optimizer), (parted, first) = begun(), begun()
    take_steps(whole, optimizer, 7)
    take_steps(parted, first, 3)
    second = build(parted, state_dtype=torch.bfloat16, checkpoint=learned_checkpoint())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    take_steps(parted, second, 4)
    assert same(weights(whole), weights(parted))


@pytest.mark.parametrize("before", [None, torch.bfloat16])
def test_a_state_of_the_other_kind_is_taken_over(before: torch.dtype | None) -> None:
    model = mlp()
    first = build(model, state_dtype=before)
    take_steps(model, first, 2)
    after = torch.bfloat16 if before is None else None
    second = build(model, state_dtype=after)
    second.load_state_dict(first.state_dict())
    take_steps(model, second, 1)
    kinds = {entry[key].dtype for entry in second.state.values() for key in MOMENTA}
    assert kinds == {after or torch.float32}


@pytest.mark.parametrize("option", ["state_dtype", "matmul_dtype"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, "bfloat16"])
def test_other_dtypes_of_state_and_products_are_refused(option: str, dtype: object) -> None:
    with pytest.raises(OptimizerError, match=f"{option} is .*bfloat16, or None"):
        build(mlp(), **{option: dtype})


def test_a_training_with_products_in_bfloat16_ends_where_the_full_one_does() -> None:
    ends = []
    for dtype in (None, torch.bfloat16):
        model = mlp()
        ends.append(take_steps(model, build(model, total_steps=60, matmul_dtype=dtype), 60))
    assert ends[1] != ends[0]
    assert ends[0][-1] < 0.01 * ends[0][0]
    assert ends[1][-1] == pytest.approx(ends[0][-1], rel=0.25)  # the loss falls a thousandfold
