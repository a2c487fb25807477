"""The layout of one architecture: exact there and back, and strict about what it takes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nfopt.errors import PermutationSpecError, UnknownNameError
from nfopt.nn import LayoutError, weight_layout
from nfopt.nn.layout import io_atoms
from nfopt.weightspace import block_plan
from tests.hand_specs import SPECS, random_specs, random_tensors
from tests.nn.spec_bound import LAWS, law_spec, law_tensors, layouts, random_values


@pytest.mark.parametrize("name", LAWS)
def test_tensors_come_back_exactly(name):
    spec = law_spec(name)
    tensors = law_tensors(spec, batch=(2,))
    for layout in layouts(spec):
        back = layout.leave(layout.enter(tensors))
        assert all(torch.equal(back[n], tensors[n]) for n in tensors)


@settings(deadline=None, max_examples=40)
@given(random_specs(), st.integers(1, 3), st.booleans())
def test_tensors_with_channels_come_back_exactly_on_random_specs(spec, channels, permute_io):
    layout = weight_layout(spec, permute_io=permute_io)
    tensors = {n: torch.stack([t, -t, t + 1][:channels], -1) for n, t in random_tensors(spec, 0).items()}
    back = layout.leave(layout.enter(tensors, channels=True), channels=True)
    assert all(torch.equal(back[n], tensors[n]) for n in tensors)


def test_values_come_back_exactly_the_other_way_round():
    for layout in layouts(SPECS["resnet"]):
        values = random_values(layout, batch=(2, 3), channels=5)
        back = layout.enter(layout.leave(values, channels=True), channels=True)
        assert all(torch.equal(b, v) for b, v in zip(back, values, strict=True))


def test_fixed_dimensions_become_channels_with_the_channels_of_a_position_together():
    layout = weight_layout(SPECS["resnet"], ["stem.weight"])
    weight = torch.randn(5, 2, 3, 2, 7)
    (values,) = layout.enter({"stem.weight": weight}, channels=True)
    assert values.shape == (5, 2 * 3 * 2 * 7)
    assert torch.equal(values[1, :7], weight[1, 0, 0, 0]) and torch.equal(values[1, -7:], weight[1, 1, 2, 1])


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mlp", {"x", "y"}), ("resnet", {"x", "y"}), ("rnn", {"x", "y"}), ("mixer", {"x", "y", "patch"})],
)
def test_inputs_and_outputs_are_told_from_kernels_and_gates(name, expected):
    spec = SPECS[name]
    assert io_atoms(block_plan(spec)) == expected
    kept = weight_layout(spec, permute_io=True).permuted
    assert kept == weight_layout(spec).permuted | expected


def test_further_fixed_atoms_can_be_kept_by_name():
    layout = weight_layout(SPECS["rnn"], also_permuted=["gates"])
    assert "gates" in layout.permuted
    with pytest.raises(UnknownNameError, match="gate"):
        weight_layout(SPECS["rnn"], also_permuted=["gate"])


def test_tensors_of_another_spec_are_refused():
    layout = weight_layout(SPECS["mlp"])
    with pytest.raises(PermutationSpecError, match=r"stem\.weight"):
        layout.enter(random_tensors(SPECS["resnet"], 0))


def test_values_of_another_spec_are_refused_with_the_block_that_does_not_fit():
    layout, other = weight_layout(SPECS["mlp"]), weight_layout(SPECS["resnet"])
    with pytest.raises(LayoutError, match="another spec"):
        layout.check(random_values(other))
    permuted = weight_layout(SPECS["mlp"], permute_io=True)
    with pytest.raises(LayoutError, match=r"0\.weight"):
        layout.check(random_values(permuted))


def test_wrong_channels_and_mixed_batches_are_refused():
    layout = weight_layout(SPECS["mlp"])
    with pytest.raises(LayoutError, match="2 x 3"):
        layout.check(random_values(layout, channels=5), channels=3)
    mixed = [*random_values(layout, batch=(2,))[:-1], random_values(layout, batch=(3,))[-1]]
    with pytest.raises(LayoutError, match="batch dimensions"):
        layout.check(mixed)
    tensors = random_tensors(SPECS["mlp"], 0)
    uneven = {n: torch.stack([t] * (2 if n == "0.bias" else 1), -1) for n, t in tensors.items()}
    with pytest.raises(LayoutError, match="different numbers of channels"):
        layout.enter(uneven, channels=True)
