import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nfopt.editing import CORRUPTIONS, Domain, corrupt, corruption
from nfopt.editing.corruptions.blur import filtered
from nfopt.errors import DuplicateNameError, EditingError, UnknownNameError

NAMES = sorted(CORRUPTIONS)
RANDOM = ["gaussian", "shot", "impulse", "motion", "elastic", "rotation", "flip", "colour_jitter"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count=7, channels=3, height=11, width=13, seed=0):
    """Return smooth random pictures."""
    noise = torch.rand(count, channels, height, width, generator=seeded(seed))
    return torch.nn.functional.avg_pool2d(noise, 3, 1, 1).sub(0.2).mul(2).clamp(0, 1)


def test_the_promised_corruptions_are_there():
    assert set(NAMES) == {
        "gaussian", "shot", "impulse", "defocus", "motion", "contrast", "brightness", "pixelate", "jpeg",
        "elastic", "rotation", "flip", "colour_jitter",
    }  # fmt: skip


@settings(deadline=None)  # the first call of a kernel is slow
@given(
    st.sampled_from(NAMES),
    st.integers(1, 5),
    st.sampled_from([(1, 8, 8), (3, 11, 13), (3, 67, 71), (1, 5, 5)]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_every_corruption_keeps_shape_type_range_and_its_input(name, severity, shape, dtype):
    images = torch.rand(3, *shape, generator=seeded()).to(dtype)
    before = images.clone()
    corrupted = corrupt(images, name, severity, seeded())
    assert corrupted.shape == images.shape and corrupted.dtype == dtype
    assert corrupted.min() >= 0 and corrupted.max() <= 1
    assert torch.equal(images, before)
    # Not to the bit: a convolution may round otherwise in its first call (torch 2.9).
    assert torch.allclose(corrupted, corrupt(images, name, severity, seeded()), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", RANDOM)
def test_another_seed_gives_another_corruption(name):
    images = pictures(31)
    assert not torch.equal(corrupt(images, name, 3, seeded(0)), corrupt(images, name, 3, seeded(1)))


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"elastic", "pixelate"}))
def test_a_higher_severity_is_farther_from_the_clean_images(name):
    images = pictures(101, height=17, width=17)
    far = [(corrupt(images, name, severity, seeded()) - images).square().mean() for severity in (1, 3, 5)]
    assert far[0] < far[1] < far[2]


@pytest.mark.parametrize("name", RANDOM)
def test_the_global_random_state_is_neither_read_nor_moved(name):
    images = pictures()
    torch.manual_seed(0)
    first, state = corrupt(images, name, 3, seeded()), torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(first, corrupt(images, name, 3, seeded()))
    torch.manual_seed(0)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(("side", "deviation"), [(32, 0.10), (67, 0.38)])
def test_gaussian_noise_has_the_published_deviation_of_its_image_size(side, deviation):
    images = torch.full((5, 3, side, side), 0.5)
    noise = corrupt(images, "gaussian", 5, seeded()) - images
    expected = deviation if deviation < 0.2 else _clipped_deviation(deviation)
    assert noise.std().item() == pytest.approx(expected, rel=0.02)


def _clipped_deviation(deviation):
    """Return the deviation of normal noise about 0.5 that is cut off at 0 and 1."""
    draw = deviation * torch.randn(1_000_000, generator=seeded(3), dtype=torch.float64)
    return draw.clamp(-0.5, 0.5).std().item()


def test_shot_noise_has_the_variance_of_counted_photons():
    images = torch.full((5, 3, 32, 32), 0.4)
    assert corrupt(images, "shot", 5, seeded()).var().item() == pytest.approx(0.4 / 50, rel=0.05)


def test_impulse_noise_turns_its_share_of_the_values_half_black_half_white():
    images = torch.full((11, 3, 32, 32), 0.4)
    corrupted = corrupt(images, "impulse", 5, seeded())
    for value in (0, 1):
        assert (corrupted == value).float().mean().item() == pytest.approx(0.035, rel=0.1)
    assert (corrupted == images).float().mean().item() == pytest.approx(0.93, rel=0.01)


def test_contrast_scales_the_distance_from_each_channels_mean():
    images = pictures().double()
    corrupted = corrupt(images, "contrast", 2, seeded())
    mean = images.mean((2, 3), keepdim=True)
    torch.testing.assert_close(corrupted - mean, 0.5 * (images - mean))


def test_brightness_adds_to_the_value_and_keeps_hue_and_saturation():
    from colorsys import rgb_to_hsv

    pixel = torch.tensor([0.6, 0.3, 0.15]).reshape(1, 3, 1, 1)
    hue, saturation, value = rgb_to_hsv(*corrupt(pixel, "brightness", 4, seeded()).flatten().tolist())
    assert (hue, saturation, value) == pytest.approx(
        tuple(a + b for a, b in zip(rgb_to_hsv(0.6, 0.3, 0.15), (0, 0, 0.2), strict=True)), abs=1e-6
    )
    black = torch.zeros(1, 3, 1, 1)
    assert corrupt(black, "brightness", 4, seeded()).flatten().tolist() == pytest.approx([0.2] * 3)


@pytest.mark.parametrize("name", ["defocus", "motion", "elastic", "pixelate", "contrast"])
@pytest.mark.parametrize("side", [13, 67])
def test_an_even_picture_has_nothing_to_blur_or_to_move(name, side):
    images = torch.full((3, 3, side, side), 0.3)
    for severity in (1, 2, 5):
        torch.testing.assert_close(corrupt(images, name, severity, seeded()), images)


def test_a_defocused_point_is_a_disk_of_the_given_radius():
    point = torch.zeros(1, 1, 67, 67)
    point[0, 0, 33, 33] = 1
    disk = corrupt(point, "defocus", 1, seeded())[0, 0]
    rows, columns = torch.nonzero(disk > 1e-4, as_tuple=True)
    radius = ((rows - 33) ** 2 + (columns - 33) ** 2).max().sqrt().item()
    assert radius == pytest.approx(3, abs=0.01)
    assert disk.sum().item() == pytest.approx(1, abs=1e-5)


def test_filtering_mirrors_the_edges_and_repeats_them_where_the_image_is_too_small_for_that():
    kernel = torch.zeros(3, 3)
    kernel[1, 0] = 1  # the left neighbour
    row = torch.tensor([[[[0.1, 0.2, 0.3]] * 3]])
    assert filtered(row, kernel)[0, 0, 0].tolist() == pytest.approx([0.2, 0.1, 0.2])
    assert filtered(row[:, :, :1], kernel)[0, 0, 0].tolist() == pytest.approx([0.1, 0.1, 0.2])


def test_motion_leaves_a_trace_within_45_degrees_of_the_horizontal():
    points = torch.zeros(31, 1, 33, 33)
    points[:, :, 16, 16] = 1
    traces = corrupt(points, "motion", 5, seeded())
    _, _, rows, columns = torch.nonzero(traces, as_tuple=True)
    assert ((rows - 16).abs() <= (columns - 16).abs() + 1).all()
    assert len(set(rows.tolist())) > 5
    torch.testing.assert_close(traces.sum((1, 2, 3)), torch.ones(31))


def test_a_flip_at_severity_5_mirrors_all_images_and_is_its_own_inverse():
    images = pictures()
    flipped = corrupt(images, "flip", 5, seeded())
    assert torch.equal(flipped, images.flip(-1))
    assert torch.equal(corrupt(flipped, "flip", 5, seeded()), images)


def test_rotation_keeps_the_middle_and_the_distances_from_it():
    images = torch.zeros(31, 1, 33, 33)
    images[:, :, 16, 16] = 1
    torch.testing.assert_close(corrupt(images, "rotation", 5, seeded())[:, 0, 16, 16], torch.ones(31))
    ring = torch.zeros(31, 1, 33, 33)
    ring[:, :, 15:18, 24:27] = 1
    turned = corrupt(ring, "rotation", 5, seeded())[:, 0]
    line = torch.arange(33.0)
    centre = (
        torch.stack([(turned.sum(2) * line).sum(1), (turned.sum(1) * line).sum(1)], 1)
        / turned.sum((1, 2))[:, None]
    )
    torch.testing.assert_close((centre - 16).norm(dim=1), torch.full((31,), 9.0), atol=0.15, rtol=0)
    assert ((centre[:, 0] - 16).abs() <= 9.15 * math.sin(math.pi / 3)).all()


def test_pixelated_images_are_blocks_of_their_means():
    images = torch.rand(1, 1, 128, 128, generator=seeded())
    corrupted = corrupt(images, "pixelate", 5, seeded())[0, 0]
    blocks = corrupted.reshape(32, 4, 32, 4)
    assert torch.equal(blocks.amax((1, 3)), blocks.amin((1, 3)))
    torch.testing.assert_close(blocks.mean((1, 3)), images[0, 0].reshape(32, 4, 32, 4).mean((1, 3)))


def test_jpeg_of_many_channels_is_refused():
    with pytest.raises(EditingError, match="1 or 3 channels, not of 5"):
        corrupt(torch.rand(1, 5, 8, 8), "jpeg", 1, seeded())


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (torch.rand(3, 8, 8), "images x channels x height x width"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), "floating point"),
        (torch.zeros(0, 1, 8, 8), "no images"),
        (torch.full((1, 1, 8, 8), 1.5), "Corrupt before standardising"),
        (torch.full((1, 1, 8, 8), math.nan), "values in"),
    ],
)
def test_what_is_no_batch_of_pictures_is_refused(images, says):
    with pytest.raises(EditingError, match=says):
        corrupt(images, "contrast", 1, seeded())


@pytest.mark.parametrize("severity", [0, 6, 2.5])
def test_a_severity_is_1_to_5(severity):
    with pytest.raises(EditingError, match="from 1 to 5"):
        corrupt(pictures(), "contrast", severity, seeded())
    with pytest.raises(EditingError, match="from 1 to 5"):
        Domain((("contrast", severity),))


@settings(deadline=None)  # the first call of a kernel is slow
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 5)), max_size=3))
def test_a_domain_is_read_as_it_is_written_and_does_its_steps_in_turn(steps):
    domain = Domain(tuple(steps))
    assert Domain.parse(str(domain)) == domain
    images = expected = pictures(3)
    generator = seeded()
    for name, severity in steps:
        expected = corrupt(expected, name, severity, generator)
    assert torch.allclose(domain(images, seeded()), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("contrast", EditingError, "write contrast:3"),
        ("contrast:x", EditingError, "write contrast:3"),
        ("contrast:9", EditingError, "from 1 to 5"),
        ("contarst:3", UnknownNameError, "Did you mean 'contrast'"),
    ],
)
def test_a_domain_that_is_written_wrongly_is_refused(text, error, says):
    with pytest.raises(error, match=says):
        Domain.parse(text)


def test_corruptions_of_ones_own_are_entered_once():
    with pytest.raises(DuplicateNameError):
        corruption("contrast")(lambda images, severity, generator: images)
