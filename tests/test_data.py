import numpy as np
import pytest
import torch

from nfopt.data import DATA_SETS, load_data
from nfopt.errors import DataError, UnknownNameError


def rows(split):
    return {tuple(image.flatten().tolist()) for image in split.images}


def test_the_same_arguments_give_the_same_tensors_and_the_same_hash():
    first, second = load_data("digits", n_train=101), load_data("digits", n_train=101)
    assert first.content_hash == second.content_hash
    assert torch.equal(first.train.images, second.train.images)


@pytest.mark.parametrize("change", [{"n_train": 100}, {"seed": 1}, {"label_noise": 0.1}, {"resize": 5}])
def test_every_option_changes_the_hash(change):
    base = {"n_train": 101}
    assert load_data("digits", **(base | change)).content_hash != load_data("digits", **base).content_hash


def test_the_three_splits_share_no_image():
    data = load_data("digits", standardize=False)
    train, val, test = rows(data.train), rows(data.val), rows(data.test)
    assert len(data.train) + len(data.val) + len(data.test) == 1797
    assert not (train & val or train & test or val & test)


def test_validation_and_test_do_not_depend_on_the_seed_or_the_subset():
    first = load_data("digits", n_train=101, seed=0, standardize=False)
    second = load_data("digits", n_train=211, seed=5, standardize=False)
    assert torch.equal(first.val.images, second.val.images)
    assert torch.equal(first.test.images, second.test.images)


def test_exactly_the_stated_share_of_labels_is_flipped_and_the_test_labels_stay_true():
    clean, noisy = load_data("digits"), load_data("digits", label_noise=0.2)
    for split in ("train", "val"):
        before, after = getattr(clean, split).labels, getattr(noisy, split).labels
        assert (before != after).sum().item() == round(0.2 * len(before))
        assert 0 <= after.min() and after.max() < 10
    assert torch.equal(clean.test.labels, noisy.test.labels)


def test_standardised_training_images_have_mean_0_and_deviation_1():
    images = load_data("digits").train.images
    assert images.mean().abs() < 0.01
    assert (images.std() - 1).abs() < 0.01


def test_images_are_between_0_and_1_unless_standardised():
    data = load_data("digits", standardize=False, resize=5)
    assert data.in_shape == (1, 5, 5)
    assert 0 <= data.train.images.min() and data.train.images.max() <= 1


@pytest.mark.parametrize(
    "bad",
    [{"n_train": 0}, {"n_train": 1438}, {"n_val": 0}, {"n_val": 1437}, {"label_noise": 1.5}, {"resize": 0}],
)
def test_a_number_that_does_not_fit_is_an_error(bad):
    with pytest.raises(DataError):
        load_data("digits", **bad)


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'digits'"):
        load_data("digit")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_absent_files_are_an_error_that_says_the_way_out(name, tmp_path, monkeypatch):
    monkeypatch.delenv("NFOPT_DATA", raising=False)
    with pytest.raises(DataError, match="NFOPT_DATA"):
        load_data(name)
    with pytest.raises(DataError, match="download: true"):
        load_data(name, data_dir=tmp_path)


def write_cifar(folder, count=5011, **arrays):
    made = {
        "x_train": np.zeros((count, 32, 32, 3), np.uint8),
        "y_train": np.arange(count) % 10,
        "x_test": np.zeros((7, 32, 32, 3), np.uint8),
        "y_test": np.zeros(7, np.uint8),
    } | arrays
    np.savez(folder / "cifar10.npz", **{key: value for key, value in made.items() if value is not None})


def test_cifar10_is_read_from_an_archive(tmp_path):
    images = np.zeros((5011, 32, 32, 3), np.uint8)
    images[:, 3, 5, 2] = 255
    write_cifar(tmp_path, x_train=images)
    data = load_data("cifar10", data_dir=tmp_path, standardize=False)
    assert data.in_shape == (3, 32, 32)
    assert (len(data.train), len(data.val), len(data.test)) == (11, 5000, 7)
    assert torch.equal(data.train.images.sum(0), data.train.images[0] * 11)
    assert data.train.images[0, 2, 3, 5] == 1 and data.train.images[0].sum() == 1


@pytest.mark.parametrize("arrays", [{"x_train": None}, {"x_test": np.zeros((7, 5))}, {"y_test": np.zeros(6)}])
def test_an_archive_of_another_form_is_an_error(arrays, tmp_path):
    write_cifar(tmp_path, **arrays)
    with pytest.raises(DataError):
        load_data("cifar10", data_dir=tmp_path)


def test_a_truncated_archive_is_an_error(tmp_path):
    write_cifar(tmp_path)
    file = tmp_path / "cifar10.npz"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError):
        load_data("cifar10", data_dir=tmp_path)


@pytest.mark.data
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_the_real_set_has_its_size_and_all_its_classes(name):
    data = load_data(name, n_train=211, resize=7)
    assert data.in_shape == ((3, 7, 7) if name == "cifar10" else (1, 7, 7))
    assert (len(data.train), len(data.val), len(data.test)) == (211, 5000, 10000)
    assert data.train.labels.unique().tolist() == list(range(10))


def test_every_data_set_is_described():
    assert all(DATA_SETS[name].__doc__ for name in DATA_SETS)
