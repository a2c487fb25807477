"""Features: the same at any scale, honest about a missing source, never made of NaN."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from nfopt.errors import PermutationSpecError
from nfopt.weightspace import FeatureError, WeightSpaceFeatures
from nfopt.weightspace.features import LOG_FLOOR
from tests.hand_specs import SPECS, random_specs, random_tensors


def features_of(spec, seed=0, **kwargs):
    return WeightSpaceFeatures()(spec, random_tensors(spec, seed), random_tensors(spec, seed + 1), **kwargs)


@settings(deadline=None)
@given(random_specs(), st.integers(0, 99))
def test_features_follow_a_permutation(spec, seed):
    features, w, g = WeightSpaceFeatures(), random_tensors(spec, seed), random_tensors(spec, seed + 1)
    p = spec.sample(torch.Generator().manual_seed(seed))
    before, after = features(spec, w, g), features(spec, spec.act(p, w), spec.act(p, g))
    assert_close(after.tensors, before.tensors)
    for block, x, y in zip(before.plan.blocks, before.elements, after.elements, strict=True):
        for d, dim in enumerate(block.dims):
            x = x.index_select(d, p[dim.atom]) if dim.atom in p else x
        assert_close(y, x)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e6, 1e30])
def test_the_scale_of_the_loss_does_not_matter(scale):
    spec = SPECS["resnet"]
    w, g = random_tensors(spec, 0, dtype=torch.float32), random_tensors(spec, 1, dtype=torch.float32)
    one = WeightSpaceFeatures()(spec, w, g)
    other = WeightSpaceFeatures()(spec, w, {n: scale * t for n, t in g.items()})
    assert_close(one.tensors, other.tensors, rtol=1e-4, atol=1e-4)
    for x, y in zip(one.elements, other.elements, strict=True):
        assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_the_scale_of_one_tensor_shows_only_in_its_log_ratio():
    spec = SPECS["mlp"]
    w = random_tensors(spec, 0)
    one = WeightSpaceFeatures(gradients=False)(spec, w)
    other = WeightSpaceFeatures(gradients=False)(spec, {**w, "2.weight": 3 * w["2.weight"]})
    for x, y in zip(one.elements, other.elements, strict=True):
        assert_close(x, y)
    difference = other.tensors - one.tensors
    expected = torch.zeros_like(difference)
    expected[list(one.plan.axes).index("2.weight"), 1] = torch.tensor(3.0).log() / 4
    assert_close(difference, expected, atol=1e-6, rtol=0)


def test_channels_are_as_documented():
    spec = SPECS["mlp"]
    w, g, m = (random_tensors(spec, seed) for seed in (0, 1, 2))
    features = WeightSpaceFeatures(extras=("momentum",))
    result = features(spec, w, g, {"momentum": m})
    assert features.element_channels == result.elements[0].shape[-1] == 7
    assert features.tensor_channels == result.tensors.shape[-1] == 8
    name = "2.weight"
    x, y = (t[name] / t[name].square().mean().sqrt() for t in (w, g))
    element = result.elements[list(result.plan.axes).index(name)]
    assert_close(element[..., 0], x.asinh())
    assert_close(element[..., 3], (y.abs() + 0.01).log() / torch.tensor(100.0, dtype=x.dtype).log())
    assert_close(element[..., 4], (x * y).asinh())
    row = result.tensors[list(result.plan.axes).index(name)]
    cosines = [torch.cosine_similarity(w[name].flatten(), g[name].flatten(), dim=0)]
    cosines.append(torch.cosine_similarity(g[name].flatten(), m[name].flatten(), dim=0))
    assert_close(row[[4, 7]], torch.stack(cosines))
    everything = torch.cat([t.flatten() for t in g.values()]).square().mean().sqrt()
    assert_close(row[3], (g[name].square().mean().sqrt() / everything).log() / 4)


def test_a_missing_gradient_is_not_a_zero_gradient():
    spec = SPECS["mlp"]
    w, g = random_tensors(spec, 0), random_tensors(spec, 1)
    missing = WeightSpaceFeatures()(spec, w, {n: t for n, t in g.items() if n != "2.bias"})
    zero = WeightSpaceFeatures()(spec, w, {**g, "2.bias": torch.zeros(7, dtype=torch.float64)})
    row = list(missing.plan.axes).index("2.bias")
    assert missing.tensors[row, 2:].tolist() == [0, 0, 0]
    assert zero.tensors[row, 2:].tolist() == [1, -LOG_FLOOR / 4, 0]
    assert_close(missing.elements[row], zero.elements[row])


def test_zeros_have_finite_features_and_gradients():
    spec = SPECS["rnn"]
    w = {n: torch.zeros_like(t).requires_grad_() for n, t in random_tensors(spec, 0).items()}
    result = WeightSpaceFeatures()(spec, w, {n: t.detach() for n, t in w.items()})
    total = sum(x.sum() for x in result.elements) + result.tensors.sum()
    total.backward()
    assert torch.isfinite(total)
    assert all(t.grad is None or torch.isfinite(t.grad).all() for t in w.values())


def test_batched_nets_have_the_features_of_each():
    spec = SPECS["vit"]
    w, g = random_tensors(spec, 0, batch=(3,)), random_tensors(spec, 1, batch=(3,))
    together = WeightSpaceFeatures()(spec, w, g)
    alone = WeightSpaceFeatures()(spec, {n: t[1] for n, t in w.items()}, {n: t[1] for n, t in g.items()})
    assert_close(together.tensors[1], alone.tensors)
    for x, y in zip(together.elements, alone.elements, strict=True):
        assert_close(x[1], y)


def test_half_precision_is_read_in_single():
    spec = SPECS["mlp"]
    w = random_tensors(spec, 0, dtype=torch.bfloat16)
    result = WeightSpaceFeatures(gradients=False)(spec, w)
    exact = WeightSpaceFeatures(gradients=False)(spec, {n: t.float() for n, t in w.items()})
    assert result.tensors.dtype == torch.float32
    assert_close(result.elements[0], exact.elements[0])


def test_tensors_may_be_left_out():
    spec = SPECS["resnet"]
    w = {n: t for n, t in random_tensors(spec, 0).items() if spec.tensors[n].role != "statistic"}
    assert set(WeightSpaceFeatures()(spec, w, w).plan.axes) == set(w)


@pytest.mark.parametrize(
    ("bad", "source"), list(product([float("nan"), float("inf"), -float("inf")], ["weights", "gradients"]))
)
def test_numbers_that_are_not_finite_are_refused_by_name(bad, source):
    spec = SPECS["mlp"]
    given_tensors = {"weights": random_tensors(spec, 0), "gradients": random_tensors(spec, 1)}
    given_tensors[source]["2.weight"][1, 2] = bad
    with pytest.raises(FeatureError, match=rf"{source} of 2\.weight hold NaN or infinity"):
        WeightSpaceFeatures()(spec, **given_tensors)


def test_other_sources_than_configured_are_refused():
    spec, w = SPECS["mlp"], random_tensors(SPECS["mlp"], 0)
    with pytest.raises(FeatureError, match="made of weights, gradients, but weights were given"):
        WeightSpaceFeatures()(spec, w)
    with pytest.raises(FeatureError, match="but weights, momentum, gradients were given"):
        WeightSpaceFeatures()(spec, w, w, {"momentum": w})
    with pytest.raises(FeatureError, match="name one twice"):
        WeightSpaceFeatures(extras=("m", "m"))


def test_tensors_that_do_not_fit_are_refused():
    spec, w = SPECS["mlp"], random_tensors(SPECS["mlp"], 0)
    with pytest.raises(FeatureError, match=r"gradients of 2\.bias have shape \(5,\)"):
        WeightSpaceFeatures()(spec, w, {"2.bias": torch.ones(5)})
    with pytest.raises(PermutationSpecError, match="'other' is not among"):
        WeightSpaceFeatures()(spec, w, {"other": torch.ones(5)})
    with pytest.raises(PermutationSpecError, match=r"2\.bias has shape"):
        WeightSpaceFeatures(gradients=False)(spec, {**w, "2.bias": torch.ones(5)})
    with pytest.raises(FeatureError, match=r"torch\.int64"):
        WeightSpaceFeatures(gradients=False)(spec, {**w, "2.bias": torch.ones(7, dtype=torch.long)})
