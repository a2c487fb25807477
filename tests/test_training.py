import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nfopt.data import ImageData, Split
from nfopt.errors import CheckpointError, NfoptError
from nfopt.optim import NFOptimizer
from nfopt.training import Curve, Optimization, TrainingConfig, batch_indices, train


class StopHereError(Exception):
    """Stands for a kill in the middle of a training."""


def some_data(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    images = scale * torch.randn(31, 1, 2, 3, generator=generator)
    labels = (images.flatten(1).sum(1) > 0).long()
    return ImageData(
        "toy",
        Split(images[:17], labels[:17]),
        Split(images[17:24], labels[17:24]),
        Split(images[24:], labels[24:]),
        2,
    )


def fresh(lr=0.05, schedule=True, dropout=0.3):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(dropout), nn.Linear(5, 2)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 23) if schedule else None
    return model, Optimization(optimizer, scheduler)


CONFIG = TrainingConfig(total_steps=23, batch_size=5, evaluate_every=7, seed=3, save_every_s=0.0)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5), st.integers(0, 9))
def test_an_epoch_never_shows_an_image_twice(images, batch_size, seed, epoch):
    per_epoch = images // min(images, batch_size)
    steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
    seen = torch.cat([batch_indices(s, images=images, batch_size=batch_size, seed=seed) for s in steps])
    assert len(seen.unique()) == len(seen) == per_epoch * min(images, batch_size)


def test_another_epoch_and_another_seed_have_another_order():
    first, second = (batch_indices(s, images=101, batch_size=101, seed=0) for s in (0, 1))
    assert not torch.equal(first, second)
    assert not torch.equal(first, batch_indices(0, images=101, batch_size=101, seed=1))


def test_equal_arguments_give_equal_curves_whatever_the_global_random_state():
    first = train(*_args(), CONFIG)
    model, optimization = fresh()
    torch.manual_seed(12345)
    before = torch.get_rng_state()
    second = train(model, some_data(), optimization, CONFIG)
    assert first == second
    assert torch.equal(before, torch.get_rng_state())


def _args():
    model, optimization = fresh()
    return model, some_data(), optimization


def test_the_points_are_the_first_the_last_and_every_seventh():
    curve = train(*_args(), CONFIG)
    assert curve.steps == [0, 7, 14, 21, 23]
    assert curve.val_loss[-1] == curve.final["val"]["loss"]
    assert set(curve.final) == {"train", "val", "test"}


def _args_with_nfopt():
    model, _ = fresh()
    data = some_data()
    optimizer = NFOptimizer(model, 23, checkpoint="nominal", example_inputs=(data.train.images[:2],))
    return model, data, Optimization(optimizer)


@pytest.mark.parametrize("make", [_args, _args_with_nfopt])
@pytest.mark.parametrize("stop_at", [0, 7, 14, 21])
def test_a_training_that_is_stopped_and_begun_again_ends_with_the_same_bits(tmp_path, stop_at, make):
    whole_model, data, optimization = make()
    whole = train(whole_model, data, optimization, CONFIG)

    def stop(progress):
        if progress.done == stop_at:
            raise StopHereError

    with pytest.raises(StopHereError):
        train(*make(), CONFIG, state_file=tmp_path / "s", progress=stop)
    model, data, optimization = make()
    resumed = train(model, data, optimization, CONFIG, state_file=tmp_path / "s")
    assert resumed == whole
    for a, b in zip(model.state_dict().values(), whole_model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_resumed_training_does_not_start_over(tmp_path):
    def stop(progress):
        if progress.done == 14:
            raise StopHereError

    with pytest.raises(StopHereError):
        train(*_args(), CONFIG, state_file=tmp_path / "s", progress=stop)
    seen = []
    train(*_args(), CONFIG, state_file=tmp_path / "s", progress=lambda p: seen.append(p.done))
    assert seen == [14, 21, 23]


def test_a_damaged_state_is_an_error(tmp_path):
    (tmp_path / "s").write_bytes(b"no state")
    with pytest.raises(CheckpointError):
        train(*_args(), CONFIG, state_file=tmp_path / "s")


def test_a_curve_survives_json_values():
    curve = train(*_args(), CONFIG)
    assert Curve(**asdict(curve)) == curve


@pytest.mark.parametrize("scale", [math.inf, math.nan])
def test_a_training_that_diverges_says_where_and_has_no_scores(scale):
    model, optimization = fresh()
    curve = train(model, some_data(scale), optimization, CONFIG)
    assert curve.diverged_at == 0
    assert curve.final == {}


@pytest.mark.parametrize("scale", [1.0, math.nan])
def test_the_last_progress_record_says_that_the_training_is_over(scale):
    seen = []
    model, optimization = fresh()
    train(model, some_data(scale), optimization, CONFIG, progress=seen.append)
    assert seen[-1].done == seen[-1].total == CONFIG.total_steps


def test_divergence_on_the_way_keeps_the_finite_points():
    model, optimization = fresh()

    def spoil(progress):
        if progress.done == 7:
            with torch.no_grad():
                model[1].weight.fill_(math.nan)

    curve = train(model, some_data(), optimization, CONFIG, progress=spoil)
    assert (curve.steps, curve.diverged_at, curve.final) == ([0, 7], 14, {})
    assert all(map(math.isfinite, curve.val_loss))


def test_training_learns():
    model, optimization = fresh(dropout=0.0)
    curve = train(model, some_data(), optimization, TrainingConfig(101, 17, 101))
    assert curve.final["train"]["loss"] < 0.3 * curve.train_loss[0]


@pytest.mark.parametrize("bad", [{"total_steps": 0}, {"batch_size": 0}, {"evaluate_every": 0}])
def test_settings_below_one_are_an_error(bad):
    with pytest.raises(NfoptError):
        TrainingConfig(**({"total_steps": 3, "batch_size": 3, "evaluate_every": 3} | bad))
