"""The spec as a value, and its action on tensors as a group action."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nfopt.errors import PermutationSpecError
from nfopt.symmetry import Atom, PermutationSpec, Prod, Sum, TensorAxes

A, B, K = Atom("a", 3), Atom("b", 5), Atom("k", 2)
SPEC = PermutationSpec(
    {
        "w": TensorAxes((Prod((A, B)), Sum((A, K, B))), role="linear", dims=("out", "in"), depth=0.25),
        "v": TensorAxes((A, A), role="recurrent", dims=("out", "in"), depth=1.0),
        "s": TensorAxes((B,), role="statistic", dims=("out",)),
        "n": TensorAxes((Prod((A, Sum((K, B)))),), role="bias", dims=("out",)),
        "u": TensorAxes((K,), role="bias", dims=("out",), used=False),
    },
    fixed={"k": "model output"},
    aliases={"tied": "v"},
    unruled=("aten.mystery (at here)",),
)


def tensors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(entry.shape, generator=generator) for name, entry in SPEC.tensors.items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@given(st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_acting_twice_is_acting_with_the_composition(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    p, q = SPEC.sample(generator), SPEC.sample(generator)
    composed = {name: p[name][q[name]] for name in p}
    start = tensors(seed)
    assert equal(SPEC.act(q, SPEC.act(p, start)), SPEC.act(composed, start))


@given(st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_acting_with_the_inverse_undoes(seed: int) -> None:
    p = SPEC.sample(torch.Generator().manual_seed(seed))
    inverse = {name: torch.argsort(index) for name, index in p.items()}
    start = tensors(seed)
    assert equal(SPEC.act(inverse, SPEC.act(p, start)), start)


def test_the_identity_acts_as_a_copy() -> None:
    start = tensors(0)
    result = SPEC.act({}, start)
    assert equal(result, start)
    assert all(result[name].data_ptr() != start[name].data_ptr() for name in start)


def test_samples_cover_exactly_the_groups_and_all_their_permutations() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [SPEC.sample(generator) for _ in range(200)]
    assert all(set(draw) == {"a", "b"} for draw in draws)
    assert len({tuple(draw["a"].tolist()) for draw in draws}) == 6


def test_a_product_axis_is_permuted_factor_by_factor() -> None:
    p = {"a": torch.tensor([2, 0, 1]), "b": torch.tensor([4, 3, 2, 1, 0])}
    start = torch.arange(15 * 10.0).reshape(15, 10)
    moved = SPEC.act_on("w", p, start)
    for i in range(3):
        for j in range(5):
            row = start[p["a"][i] * 5 + p["b"][j]]
            expected = torch.cat([row[:3][p["a"]], row[3:5], row[5:][p["b"]]])
            assert torch.equal(moved[i * 5 + j], expected)


def test_part_of_the_dimensions_can_be_acted_on() -> None:
    p = SPEC.sample(torch.Generator().manual_seed(3))
    rows = torch.randn(15)
    assert torch.equal(
        SPEC.act_on("w", p, rows, dims=(0,)), SPEC.act_on("w", p, rows[:, None].expand(15, 10))[:, 0]
    )


def test_a_tied_name_is_permuted_like_the_tensor_it_shares() -> None:
    p = SPEC.sample(torch.Generator().manual_seed(1))
    start = torch.randn(3, 3)
    assert torch.equal(SPEC.act_on("tied", p, start), SPEC.act_on("v", p, start))


def test_a_spec_round_trips_through_json_and_compares() -> None:
    again = PermutationSpec.from_json(SPEC.to_json())
    assert again == SPEC
    assert again.coverage == SPEC.coverage == (150 + 9 + 21) / (150 + 9 + 21 + 2)
    assert again.unused == ("u",)


def test_a_spec_prints_its_groups_and_what_has_no_rule() -> None:
    text = str(SPEC)
    assert "2 groups, 5 tensors" in text
    assert "a (3): w[0], w[1], v[0], v[1], ... (5)" in text
    assert "no rule: aten.mystery (at here)" in text


def test_groups_leave_out_the_fixed_and_the_single() -> None:
    assert set(SPEC.groups) == {"a", "b"}
    assert SPEC.occurrences["a"] == (("w", 0), ("w", 1), ("v", 0), ("v", 1), ("n", 0))


def test_an_uncoupled_spec_gives_every_axis_its_own_group() -> None:
    spec = PermutationSpec.uncoupled({"w": (5, 3, 2, 2), "b": (5,), "s": (), "one": (1, 7)})
    assert [atom.size for atom in spec.groups.values()] == [5, 3, 2, 2, 5, 7]
    assert spec.tensors["w"].dims == ("out", "in", "kernel", "kernel")
    assert spec.tensors["b"].dims == ("out",)
    assert spec.tensors["s"].dims == ()


def test_one_name_with_two_sizes_is_refused() -> None:
    with pytest.raises(PermutationSpecError, match=r"'h' has size 3 at x \(axis 0\) but 7 at y \(axis 1\)"):
        PermutationSpec({"x": TensorAxes((Atom("h", 3),)), "y": TensorAxes((A, Atom("h", 7)))})


def test_unknown_names_and_wrong_shapes_are_refused() -> None:
    with pytest.raises(PermutationSpecError, match="no tensor 'zzz'"):
        SPEC.act({}, {"zzz": torch.zeros(3)})
    with pytest.raises(PermutationSpecError, match=r"v has shape \(3, 4\)"):
        SPEC.act({}, {"v": torch.zeros(3, 4)})


def test_damaged_json_is_refused() -> None:
    text = SPEC.to_json()
    for broken in ("", "[]", text[: len(text) // 2], json.dumps({**json.loads(text), "atoms": {}})):
        with pytest.raises(PermutationSpecError):
            PermutationSpec.from_json(broken)
    other = json.dumps({**json.loads(text), "version": 99})
    with pytest.raises(PermutationSpecError, match="version 99"):
        PermutationSpec.from_json(other)
