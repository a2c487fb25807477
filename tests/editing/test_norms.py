import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nfopt.editing.norms import (
    affine_parameters,
    batch_statistics,
    even_parts,
    measure_statistics,
    norms_of,
    put_statistics,
)
from tests.editing.nets import bits_of, mlp, normed


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(2, 30))
def test_the_moments_of_a_first_layer_do_not_depend_on_the_batches(batch_size, count):
    model = nn.Sequential(nn.BatchNorm1d(5)).double()
    values = 3 + torch.randn(count, 5, 7, generator=torch.Generator().manual_seed(count)).double()
    found = measure_statistics(model, values, batch_size)["0"]
    torch.testing.assert_close(found.mean, values.mean((0, 2)))
    torch.testing.assert_close(found.variance, values.movedim(1, 0).flatten(1).var(1))


def test_in_one_batch_the_moments_are_those_that_pytorch_takes_for_running_statistics():
    model = normed()
    for norm in norms_of(model).values():
        norm.momentum = 1.0
    images = torch.randn(11, 2, 7, 7, generator=torch.Generator().manual_seed(3))
    found = measure_statistics(model, images)["1"]
    model.train()(images)
    torch.testing.assert_close(found.mean.float(), model[1].running_mean)
    torch.testing.assert_close(found.variance.float(), model[1].running_var)


def test_measuring_changes_neither_buffers_nor_modes():
    model = normed()
    before = bits_of(model)
    with batch_statistics(model):
        assert model[1].training and not model.training
        model(torch.randn(5, 2, 7, 7))
    measure_statistics(model, torch.randn(5, 2, 7, 7))
    assert bits_of(model) == before and not model[1].training


@pytest.mark.parametrize(("source_count", "share"), [(0.0, 1.0), (8.0, 1 / 3), (4.0, 1 / 2)])
def test_statistics_are_blended_by_the_counts(source_count, share):
    model = normed()
    images = torch.randn(4, 2, 7, 7, generator=torch.Generator().manual_seed(3))
    mean, variance = model[1].running_mean.clone(), model[1].running_var.clone()
    found = measure_statistics(model, images)
    put_statistics(model, found, images=4, source_count=source_count)
    expected = (1 - share) * mean + share * found["1"].mean
    torch.testing.assert_close(model[1].running_mean, expected.float())
    expected = (1 - share) * variance + share * found["1"].variance
    torch.testing.assert_close(model[1].running_var, expected.float())


def test_parts_are_nearly_equal_and_none_is_a_single_image():
    assert [len(part) for part in even_parts(torch.zeros(257, 1), 256)] == [129, 128]
    assert [len(part) for part in even_parts(torch.zeros(7, 1), 3)] == [3, 2, 2]


def test_only_batchnorm_with_running_statistics_counts():
    plain = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.LayerNorm(3))
    assert not norms_of(plain) and not norms_of(mlp())
    assert list(affine_parameters(normed())) == ["1.weight", "1.bias"]
    assert list(affine_parameters(nn.BatchNorm1d(3))) == ["weight", "bias"]
