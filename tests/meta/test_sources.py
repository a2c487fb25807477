"""Sources: the synthetic ones are the same everywhere, standardised, and hold what a network can learn."""

import torch

from nfopt.meta.silhouettes import CLASSES, OTHER_IMAGES, TRAIN_IMAGES
from nfopt.meta.sources import load_source, source_names


def test_silhouettes_are_the_same_each_time_and_for_each_side_its_own():
    first, again = load_source("silhouettes", 8), load_source.__wrapped__("silhouettes", 8)
    assert torch.equal(first.train.images, again.train.images)
    assert torch.equal(first.val.labels, again.val.labels)
    assert first.in_shape == (1, 8, 8)
    assert [len(s.labels) for s in (first.train, first.val, first.test)] == [
        TRAIN_IMAGES,
        OTHER_IMAGES,
        OTHER_IMAGES,
    ]
    assert "silhouettes" in source_names()


def test_silhouettes_are_standardised_balanced_and_dense():
    images, labels = (getattr(load_source("silhouettes", 8).train, name) for name in ("images", "labels"))
    assert images.mean().abs() < 0.01 and (images.std() - 1).abs() < 0.01
    assert labels.bincount(minlength=CLASSES).min() > 0.09 * TRAIN_IMAGES
    # No pixel is dead: digits at this size leave a quarter of them without variance.
    assert images.std(0).min() > 0.3


def test_a_nearest_mean_tells_silhouettes_apart_and_confuses_the_pairs_most():
    source = load_source("silhouettes", 8)
    means = torch.stack(
        [source.train.images[source.train.labels == c].flatten(1).mean(0) for c in range(CLASSES)]
    )
    found = torch.cdist(source.test.images.flatten(1), means).argmin(1)
    labels = source.test.labels
    assert 0.4 < (found == labels).double().mean() < 0.95
    wrong = found != labels
    assert (found[wrong] // 2 == labels[wrong] // 2).double().mean() > 2 / (CLASSES - 1)
