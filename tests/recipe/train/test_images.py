"""Images in memory and in folders, varied by seed."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from nfopt.errors import DataError
from nfopt.recipe.inputs import DataOptions
from nfopt.recipe.train.images import Augmentation, FolderOptions, load_images

DIGITS = DataOptions(name="digits", n_train=101, n_val=53)
EVERYTHING = Augmentation(flip=True, pad=2, min_area=0.5)
KEYS = [(number, 3) for number in range(11)]


def pictures(root: Path, parts: tuple[str, ...] = ("train", "val", "test"), each: int = 5) -> Path:
    """Write pictures of three classes that differ in colour, of differing shapes."""
    generator = torch.Generator().manual_seed(0)
    for part in parts:
        for channel, name in enumerate(("blue", "green", "red")):
            (root / part / name).mkdir(parents=True)
            for number in range(each):
                values = torch.randint(0, 90, (17 + number, 13, 3), generator=generator, dtype=torch.uint8)
                values[:, :, 2 - channel] += 150
                Image.fromarray(values.numpy()).save(root / part / name / f"{number}.png")
    return root


def test_without_augmentation_images_are_those_of_the_data_set() -> None:
    sets, data = load_images(DIGITS, Augmentation(), seed=0), DIGITS.load()
    images, labels = sets.train.__getitems__([(number, 5) for number in range(101)])
    assert torch.equal(images, data.train.images)
    assert torch.equal(labels, data.train.labels)
    assert (sets.in_shape, sets.classes, len(sets.val)) == ((1, 8, 8), 10, 53)


@pytest.mark.parametrize("augment", [EVERYTHING, Augmentation(flip=True), Augmentation(pad=1)])
def test_a_draw_is_fixed_by_seed_step_and_image_alone(augment: Augmentation) -> None:
    sets = load_images(DIGITS, augment, seed=0)
    before = torch.get_rng_state()
    images, labels = sets.train.__getitems__(KEYS)
    assert torch.equal(torch.get_rng_state(), before)
    backwards, _ = sets.train.__getitems__(KEYS[::-1])
    assert torch.equal(images, backwards.flip(0))
    other_step, same_labels = sets.train.__getitems__([(number, 4) for number, _ in KEYS])
    other_seed, _ = load_images(DIGITS, augment, seed=1).train.__getitems__(KEYS)
    assert not torch.equal(images, other_step)
    assert not torch.equal(images, other_seed)
    assert torch.equal(labels, same_labels)
    assert images.shape == (11, 1, 8, 8)


def test_only_training_images_are_varied() -> None:
    sets, plain = load_images(DIGITS, EVERYTHING, seed=0), load_images(DIGITS, Augmentation(), seed=0)
    assert torch.equal(sets.val.__getitems__(KEYS)[0], plain.val.__getitems__(KEYS)[0])
    assert sets.test is not None
    assert plain.test is not None
    assert torch.equal(sets.test.__getitems__(KEYS)[0], plain.test.__getitems__(KEYS)[0])


@pytest.mark.parametrize("augment", [Augmentation(), EVERYTHING])
def test_a_folder_of_pictures_is_read_by_class(tmp_path: Path, augment: Augmentation) -> None:
    sets = load_images(FolderOptions(folder=pictures(tmp_path), side=7), augment, seed=0)
    images, labels = sets.train.__getitems__([(number, 0) for number in range(15)])
    assert images.shape == (15, 3, 7, 7)
    assert images.dtype == torch.float32
    assert labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert sets.class_names == ("blue", "green", "red")
    brightest = images.mean((2, 3)).argmax(1)
    assert torch.equal(brightest, 2 - labels)


def test_the_hash_of_a_folder_changes_with_its_files(tmp_path: Path) -> None:
    options = FolderOptions(folder=pictures(tmp_path), side=7)
    before = load_images(options, Augmentation(), seed=0).content_hash
    assert load_images(options, EVERYTHING, seed=1).content_hash == before
    (tmp_path / "train" / "red" / "0.png").unlink()
    assert load_images(options, Augmentation(), seed=0).content_hash != before


def test_a_folder_without_a_test_part_has_no_test_images(tmp_path: Path) -> None:
    options = FolderOptions(folder=pictures(tmp_path, ("train", "val")), side=7)
    assert load_images(options, Augmentation(), seed=0).test is None


@pytest.mark.parametrize("missing", ["train", "val"])
def test_a_folder_without_a_part_says_what_is_expected(tmp_path: Path, missing: str) -> None:
    parts = tuple(part for part in ("train", "val") if part != missing)
    with pytest.raises(DataError, match=rf"no folder .*{missing}.*val/CLASS/"):
        load_images(FolderOptions(folder=pictures(tmp_path, parts)), Augmentation(), seed=0)


def test_a_folder_without_classes_says_what_is_expected(tmp_path: Path) -> None:
    pictures(tmp_path, ("val",))
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"holds no pictures by class.*train/CLASS/"):
        load_images(FolderOptions(folder=tmp_path), Augmentation(), seed=0)


def test_splits_with_different_classes_are_refused_by_name(tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / "val" / "red").rename(tmp_path / "val" / "crimson")
    with pytest.raises(DataError, match="train and val have different classes: crimson, red are in one only"):
        load_images(FolderOptions(folder=tmp_path), Augmentation(), seed=0)


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / "train" / "blue" / "0.png").write_bytes(b"no picture")
    sets = load_images(FolderOptions(folder=tmp_path, side=7), Augmentation(), seed=0)
    with pytest.raises(DataError, match=r"0\.png cannot be read"):
        sets.train.__getitems__([(0, 0)])
