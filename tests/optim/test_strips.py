"""Tensors laid end to end: what is done to them at once is what is done to each."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nfopt.optim import LearnedUpdateRule, directions, strips
from nfopt.optim.holding import Whole
from nfopt.optim.strips import Strip, strips_of
from nfopt.symmetry import PermutationSpec
from nfopt.weightspace.incidence import Incidence, build_incidence

SHAPES = {"bias": (5,), "scalar": (), "depthwise": (7, 1, 3, 3), "token": (1, 1, 11), "linear": (3, 2)}
LAID = ["bias", "scalar", "depthwise", "token"]


def incidence() -> Incidence:
    return build_incidence(PermutationSpec.uncoupled(SHAPES))


def positions(among: Incidence) -> list[int]:
    return [among.names.index(name) for name in LAID]


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_splitting_undoes_joining(batch: tuple[int, ...]) -> None:
    strip = Strip.of(incidence(), positions(incidence()))
    tensors = [torch.randn((*batch, *SHAPES[name])) for name in LAID]
    laid = strip.join(tensors)
    assert laid.shape == (*batch, sum(strip.sizes))
    assert all(torch.equal(a, b) for a, b in zip(strip.split(laid), tensors, strict=True))


@pytest.mark.parametrize("batch", [(), (2,)])
def test_every_element_knows_its_tensor_and_its_row(batch: tuple[int, ...]) -> None:
    among = incidence()
    strip = Strip.of(among, positions(among))
    values, table = torch.randn(*batch, len(LAID)), torch.randn(*batch, among.entry_count)
    spread, rows = strip.split(strip.spread(values)), strip.split(table.index_select(-1, strip.row))
    for i, name in enumerate(LAID):
        k = len(SHAPES[name])
        assert torch.equal(spread[i], directions.spread(values[..., i], k).expand_as(spread[i]))
        layout = among.layouts[strip.positions[i]]
        own = table[..., among.slices[name, "out"]]
        shape = [n if d in layout.out_dims else 1 for d, n in enumerate(layout.shape)]
        assert torch.equal(rows[i], own.reshape((*batch, *shape)).expand_as(rows[i]))
    assert [among.names[i] for i in strip.tensor[:5]] == ["bias"] * 5


@given(seed=st.integers(0, 2**31), log_scale=st.floats(-8, 8))
def test_adam_along_a_strip_is_adam_of_every_tensor(seed: int, log_scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    strip = Strip.of(incidence(), positions(incidence()))
    momenta = [torch.randn(SHAPES[n], generator=generator).double() * 10**log_scale for n in LAID]
    second = [m.square() * (1 + torch.rand(m.shape, generator=generator)) for m in momenta]
    found = strip.split(directions.adam_along(strip.join(momenta), strip.join(second), strip))
    for move, m, v in zip(found, momenta, second, strict=True):
        torch.testing.assert_close(move, directions.adam(m, v, m.dim()), rtol=1e-9, atol=1e-12)


def test_tensors_with_columns_and_large_ones_are_left_out_and_one_alone_is_no_strip(monkeypatch) -> None:
    among = incidence()
    assert [s.positions for s in strips_of(among, range(5))] == [tuple(positions(among))]
    monkeypatch.setattr(strips, "MOST_PER_TENSOR", 10)
    assert {among.names[i] for s in strips_of(among, range(5)) for i in s.positions} == {"bias", "scalar"}
    monkeypatch.setattr(strips, "MOST_PER_TENSOR", 4)
    assert strips_of(among, range(5)) == ()


def test_a_full_strip_is_followed_by_another(monkeypatch) -> None:
    monkeypatch.setattr(strips, "MOST_PER_STRIP", 70)
    found = strips_of(incidence(), range(5))
    assert [len(s.positions) for s in found] == [3]  # what follows the full one would be alone
    shapes = {f"{i}": (31,) for i in range(5)}
    found = strips_of(build_incidence(PermutationSpec.uncoupled(shapes)), range(5))
    assert [s.positions for s in found] == [(0, 1), (2, 3)]


@pytest.mark.parametrize("batch", [(), (2,)])
def test_laid_end_to_end_the_rule_takes_the_same_step(batch: tuple[int, ...]) -> None:
    rule = LearnedUpdateRule(PermutationSpec.uncoupled(SHAPES))
    draw = torch.Generator().manual_seed(0)

    def tensors() -> dict[str, torch.Tensor]:
        return {n: torch.randn((*batch, *s), generator=draw, dtype=torch.float64) for n, s in SHAPES.items()}

    theta = {
        k: torch.randn((*batch, *v.shape), generator=draw).double() for k, v in rule.init_theta().items()
    }
    params, grads = tensors(), tensors()
    start = rule.init_state({n: torch.zeros(s, dtype=torch.float64) for n, s in SHAPES.items()})
    state = {k: v.expand((*batch, *v.shape)) for k, v in start.items()}
    half = torch.full(batch, 0.5, dtype=torch.float64)
    one_by_one = Whole(rule.incidence.layouts, rule.matrix_positions)
    assert len(rule._whole.strips) == 1
    for _ in range(3):
        laid = rule.propose(theta, params, grads, state, half)
        apart = rule.propose(theta, params, grads, state, half, holding=one_by_one)
        for name in SHAPES:
            torch.testing.assert_close(laid.updates[name], apart.updates[name], rtol=1e-9, atol=1e-12)
        state, grads = laid.state, tensors()
