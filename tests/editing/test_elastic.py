"""Elastic against a writing of the benchmark's recipe in numpy and scipy, image by image."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from nfopt.editing import corrupt

# Strength, smoothness and affine jitter in pixels of 32, as CIFAR-10-C has them.
PIXELS = {2: (1.6, 6.4, 2.24), 3: (2.56, 1.92, 1.92), 5: (3.2, 0.96, 0.96)}
SIDE, IMAGES = 32, 150


def displacements(severity):
    """Return by how many pixels (row, column) each place of each image looks away from itself."""
    strength, smoothness, jitter = PIXELS[severity]
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij"), -1).astype(float)
    found = []
    for _ in range(IMAGES):
        middle, away = np.array([SIDE // 2] * 2), SIDE // 3
        corners = np.array([middle + away, [middle[0] + away, middle[1] - away], middle - away], dtype=float)
        moved = corners + rng.uniform(-jitter, jitter, corners.shape)
        back = np.linalg.solve(np.c_[moved, np.ones(3)], corners)
        noise = [
            strength
            * gaussian_filter(rng.uniform(-1, 1, (SIDE, SIDE)), smoothness, mode="reflect", truncate=3)
            for _ in range(2)
        ]
        looked = np.c_[(places + np.stack(noise, -1)).reshape(-1, 2), np.ones(SIDE**2)] @ back
        found.append(looked.reshape(SIDE, SIDE, 2) - places)
    return np.stack(found)


@pytest.mark.parametrize("severity", sorted(PIXELS))
def test_elastic_moves_pixels_as_far_and_as_smoothly_as_the_benchmark(severity):
    # An image whose values are its places shows where each place was looked up.
    line = torch.linspace(0, 1, SIDE)
    ramps = torch.stack([line[:, None].expand(-1, SIDE), line[None, :].expand(SIDE, -1)])
    pictures = ramps.expand(IMAGES, -1, -1, -1)
    shown = corrupt(pictures, "elastic", severity, torch.Generator().manual_seed(0))
    ours = ((shown - pictures) * (SIDE - 1)).movedim(1, -1).numpy()
    inner = slice(SIDE // 3, 2 * SIDE // 3)  # what looks beyond the edge sees a mirror
    ours, theirs = (moves[:, inner, inner] for moves in (ours, displacements(severity)))
    assert np.sqrt((ours**2).mean()) == pytest.approx(np.sqrt((theirs**2).mean()), rel=0.1)
    steps = [np.sqrt((np.diff(moves, axis=1) ** 2).mean()) for moves in (ours, theirs)]
    assert steps[0] == pytest.approx(steps[1], rel=0.1)
