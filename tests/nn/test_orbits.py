"""Orbits counted three ways: by formula, by the factorised basis, and one index pair at a time."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings

from nfopt.nn import weight_layout
from nfopt.nn.orbits import groupings, orbit_count, resolutions, set_partitions
from tests.hand_specs import random_specs
from tests.nn.spec_bound import LAWS, SMALL, law_spec, layouts, mlp, recurrent


def counted_orbits(spec, layout):
    """Orbits of (output element, input element) pairs, and of output elements, found by walking them."""
    starts, total, axes = [], 0, []
    for block in layout.blocks:
        starts.append(total)
        axes.append([(dim.atom, dim.size) for dim in block.block.dims])
        total += block.block.numel
    parent = list(range((total + 1) * total))

    def find(i):
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def element(b, index):
        flat = 0
        for (_, size), i in zip(axes[b], index, strict=True):
            flat = flat * size + i
        return starts[b] + flat

    def image(b, index, atom, k):
        swap = {k: k + 1, k + 1: k} if atom in layout.permuted else {}
        return [swap.get(i, i) if name == atom else i for (name, _), i in zip(axes[b], index, strict=True)]

    indices = [
        (b, index) for b, dims in enumerate(axes) for index in product(*(range(size) for _, size in dims))
    ]
    sizes = {name: size for dims in axes for name, size in dims if name in layout.permuted}
    for atom, size in sizes.items():
        for k in range(size - 1):
            for b, index in indices:
                here, there = element(b, index), element(b, image(b, index, atom, k))
                parent[find(total * total + here)] = find(total * total + there)
                for m, other in indices:
                    old = here * total + element(m, other)
                    new = there * total + element(m, image(m, other, atom, k))
                    parent[find(old)] = find(new)
    return len({find(i) for i in range(len(parent))})


@pytest.mark.parametrize("name", SMALL)
def test_the_formula_counts_the_orbits_that_are_there(name):
    spec = SMALL[name]
    for layout in layouts(spec):
        if sum(block.block.numel for block in layout.blocks) < 60:
            assert orbit_count(layout) == counted_orbits(spec, layout)


@settings(deadline=None, max_examples=15)
@given(random_specs())
def test_the_formula_counts_the_orbits_of_random_specs(spec):
    layout = weight_layout(spec)
    if sum(block.block.numel for block in layout.blocks) < 40:
        assert orbit_count(layout) == counted_orbits(spec, layout)


@pytest.mark.parametrize("name", LAWS)
def test_readings_times_writings_are_all_orbits_once(name):
    for layout in layouts(law_spec(name)):
        elements = sum(
            layout.blocks[reading.block].multiplicity * layout.blocks[writing.block].multiplicity
            for resolution in resolutions(layout)
            for reading, row in zip(resolution.readings, resolution.allowed, strict=True)
            for writing, allowed in zip(resolution.writings, row, strict=True)
            if allowed
        )
        assert elements == orbit_count(layout, affine=False)


def test_the_counts_of_the_papers_hold():
    """A hidden matrix onto itself 4, onto its bias 2; a recurrent matrix onto itself Bell(4) = 15."""
    hidden = weight_layout(mlp(2, 5, 7, 3), ["1.weight"])
    assert orbit_count(hidden, affine=False) == 4
    both = weight_layout(mlp(2, 5, 7, 3), ["1.weight", "1.bias"])
    assert orbit_count(both, affine=False) == 4 + 2 + 2 + 2
    assert [orbit_count(layout) for layout in layouts(mlp(2, 5, 7, 3))] == [174, 68]
    assert orbit_count(weight_layout(recurrent(5), ["hh"]), affine=False) == 15
    assert orbit_count(weight_layout(recurrent(3), ["hh"]), affine=False) == 14
    assert orbit_count(weight_layout(recurrent(2), ["hh"]), affine=False) == 8


def test_the_basis_of_an_mlp_has_one_resolution_per_atom_and_per_inner_matrix():
    found = [resolution.atoms for resolution in resolutions(weight_layout(mlp(2, 5, 7, 11, 3)))]
    assert found == [(), ("n1",), ("n2",), ("n3",), ("n1", "n2"), ("n2", "n3")]


@pytest.mark.parametrize(("items", "bell"), [(0, 1), (1, 1), (2, 2), (3, 5), (4, 15), (5, 52)])
def test_set_partitions_are_all_different_and_as_many_as_bell_numbers(items, bell):
    found = list(set_partitions(range(items)))
    assert len({frozenset(map(frozenset, parts)) for parts in found}) == len(found) == bell
    assert all(sorted(i for part in parts for i in part) == list(range(items)) for parts in found)


def test_groups_never_mix_atoms():
    assert groupings(["a", "b", "a"]) == [((0,), (1,), (2,)), ((0, 2), (1,))]


def test_a_wrong_count_is_noticed():
    layout = weight_layout(recurrent(3), ["hh"])
    assert counted_orbits(recurrent(3), layout) != 15 + 2
    assert torch.tensor(resolutions(layout)[0].allowed).all().logical_not()
