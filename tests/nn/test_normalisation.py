"""Normalisation, dropout and standardisation: exactly equivariant, each net by itself."""

import pytest
import torch
from torch.testing import assert_close

from nfopt.errors import UnknownNameError
from nfopt.nn import ChannelDropout, LayoutError, WeightSpaceNorm, WeightStandardiser, weight_layout
from nfopt.nn.normalisation import BatchStandardiser
from nfopt.testing import assert_equivariant
from tests.hand_specs import SPECS
from tests.nn.spec_bound import LAWS, law_spec, law_tensors, layouts, on_tensors, random_values


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("over", ["element", "tensor"])
def test_normalisation_follows_every_permutation(name, over):
    spec = law_spec(name)
    for layout in layouts(spec):
        norm = WeightSpaceNorm(layout, 1, over).double()
        with torch.no_grad():
            for gain in norm.gains:
                gain.normal_(generator=seeded())
        if spec.groups:
            assert_equivariant(on_tensors(norm, layout), spec, law_tensors(spec), seeded())


@pytest.mark.parametrize(("over", "dims"), [("element", (-1,)), ("tensor", (-3, -2, -1))])
def test_the_root_mean_square_is_one_over_what_it_says_for_each_net(over, dims):
    layout = weight_layout(SPECS["mlp"], ["2.weight"])
    (values,) = random_values(layout, batch=(2,), channels=5)
    (got,) = WeightSpaceNorm(layout, 5, over).double()([values * 3 + 1])
    assert_close(got.square().mean(dims), torch.ones_like(got.mean(dims)), atol=1e-4, rtol=0)


def test_dropout_drops_channels_of_whole_blocks_and_keeps_the_mean():
    layout = weight_layout(SPECS["mlp"])
    ones = [torch.ones(1000, *b.shape, b.multiplicity * 3) for b in layout.blocks]
    dropped = ChannelDropout(0.3, generator=seeded())(ones, layout)
    for values, block in zip(dropped, layout.blocks, strict=True):
        flat = values.view(1000, -1, values.shape[-1])
        assert torch.equal(flat, flat[:, :1].expand_as(flat)) or not block.shape
        assert set(values.unique().tolist()) == {0.0, torch.tensor(1 / 0.7).item()}
        assert abs(values.mean().item() - 1) < 0.05


def test_dropout_is_equivariant_exactly_for_each_mask():
    spec = SPECS["resnet"]
    layout = weight_layout(spec)

    def drop(values):
        return ChannelDropout(0.5, generator=seeded(7))(values, layout)

    assert_equivariant(on_tensors(drop, layout), spec, law_tensors(spec), seeded())


def test_dropout_is_silent_in_evaluation():
    layout = weight_layout(SPECS["mlp"])
    values = random_values(layout)
    got = ChannelDropout(0.9).eval()(values, layout)
    assert all(torch.equal(a, b) for a, b in zip(got, values, strict=True))


@pytest.mark.parametrize("name", ["mlp", "resnet", "rnn"])
def test_a_fitted_standardiser_is_equivariant_and_standardises_the_zoo(name):
    spec = SPECS[name]
    layout = weight_layout(spec)
    standardiser = WeightStandardiser(layout, 1).double()
    zoo = layout.enter(law_tensors(spec, batch=(50,)))
    for values in standardiser.fit(zoo)(zoo):
        flat = values.flatten(0, -2)
        assert_close(flat.mean(0), torch.zeros_like(flat[0]))
        assert_close(flat.std(0, correction=0), torch.ones_like(flat[0]))
    assert_equivariant(on_tensors(standardiser, layout), spec, law_tensors(spec, 5), seeded())


def test_a_fresh_standardiser_is_the_identity_and_what_does_not_vary_stays_finite():
    layout = weight_layout(SPECS["mlp"])
    standardiser = WeightStandardiser(layout, 1).double()
    values = random_values(layout)
    assert all(torch.equal(a, b) for a, b in zip(standardiser(values), values, strict=True))
    for constant in (0.0, 2.0):
        zoo = [torch.full((10, *v.shape), constant, dtype=v.dtype) for v in values]
        assert all(torch.isfinite(v).all() and not v.any() for v in standardiser.fit(zoo)(zoo))


def test_a_standardiser_survives_its_state_dict():
    layout = weight_layout(SPECS["mlp"])
    fitted = WeightStandardiser(layout, 1).double().fit(random_values(layout, batch=(5,)))
    other = WeightStandardiser(layout, 1).double()
    other.load_state_dict(fitted.state_dict())
    values = random_values(layout, 3)
    assert all(torch.equal(a, b) for a, b in zip(other(values), fitted(values), strict=True))


def test_bad_input_is_refused():
    layout = weight_layout(SPECS["mlp"])
    values = random_values(layout, batch=(5,))
    values[2][3, 0, 0] = float("inf")
    with pytest.raises(LayoutError, match=r"2\.weight"):
        WeightStandardiser(layout, 1).fit(values)
    with pytest.raises(LayoutError, match=r"0 to below 1"):
        ChannelDropout(1.0)
    with pytest.raises(UnknownNameError, match="element"):
        WeightSpaceNorm(layout, 1, "elements")  # pyright: ignore[reportArgumentType]
    with pytest.raises(LayoutError, match="another spec"):
        WeightSpaceNorm(layout, 1)(random_values(weight_layout(SPECS["rnn"])))


def test_a_unit_that_was_silent_for_the_nets_of_the_training_does_not_drown_all_others_afterwards():
    standardiser = BatchStandardiser(3).double()
    pooled = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)).double()
    pooled[:, 1] = 0
    for _ in range(200):
        standardiser(pooled)
    found = standardiser.eval()(torch.ones(1, 3).double())
    assert found.abs().max() == 10 and found[0, 1] == 10


def test_no_net_of_a_batch_is_ever_too_far_off_and_infinity_stays():
    standardiser = BatchStandardiser(1).double()
    one_hot = torch.zeros(101, 1, dtype=torch.double)
    one_hot[7] = 1
    found = standardiser(one_hot)
    assert_close(found[7], torch.tensor([10.0]).double(), rtol=1e-4, atol=0)
    assert_close(found[8], torch.tensor([-0.1]).double(), rtol=1e-4, atol=0)
    assert standardiser.eval()(torch.tensor([[torch.inf]]).double()).isinf().all()
