"""Image data sets by name: deterministic splits, options that vary them, and a hash of what came out."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

from nfopt.errors import DataError
from nfopt.registry import Registry

DATA_VARIABLE = "NFOPT_DATA"
_SPLIT_SEED = 0


@dataclass(frozen=True, eq=False)
class Split:
    """Images with values near [0, 1] (or standardised), and the class of each."""

    images: Float[Tensor, "images channels height width"]
    labels: Int[Tensor, " images"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> "Split":
        return Split(self.images[index], self.labels[index])

    def to(self, device: torch.device | str) -> "Split":
        """Return the split on `device`."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set in memory. Validation images never occur in the training split.

    Attributes:
        name: the name of the data set.
        train: what is learned from.
        val: what choices are made by.
        test: what is reported.
        classes: number of classes.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: int

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def content_hash(self) -> str:
        """SHA-256 over every image and label of the three splits, in order."""
        digest = hashlib.sha256()
        for split in (self.train, self.val, self.test):
            for tensor in (split.images, split.labels):
                digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class RawImages:
    """Images as a source has them: uint8-like values in [0, 1], a training and a test part."""

    train: Split
    test: Split
    classes: int
    default_n_val: int


Source = Callable[[Path | None, bool], RawImages]
DATA_SETS: Registry[Source] = Registry("data set")


def load_data(
    name: str,
    *,
    n_train: int | None = None,
    n_val: int | None = None,
    label_noise: float = 0.0,
    resize: int | None = None,
    standardize: bool = True,
    seed: int = 0,
    data_dir: Path | None = None,
    download: bool = False,
) -> ImageData:
    """Load a data set; the same arguments always give the same tensors.

    Args:
        name: a name in `DATA_SETS`.
        n_train: number of training images kept; None for all that are left beside the validation images.
        n_val: number of validation images, drawn once from the source's training part, whatever `seed` is;
            None for the set's own number.
        label_noise: share in [0, 1] of training and validation labels replaced by another class. Test labels
            stay true.
        resize: height and width to resize to, by antialiased bilinear interpolation.
        standardize: subtract each channel's training mean and divide by its training deviation.
        seed: chooses the `n_train` images and the flipped labels.
        data_dir: where the files lie; None for the environment variable NFOPT_DATA.
        download: let torchvision fetch a missing set from the internet into `data_dir`.

    Raises:
        UnknownNameError: there is no such data set.
        DataError: the files are absent or damaged, or a number does not fit the set.
    """
    raw = DATA_SETS[name](data_dir or _data_dir_from_environment(), download)
    n_val = raw.default_n_val if n_val is None else n_val
    available = len(raw.train) - n_val
    if n_val < 1 or not 1 <= (available if n_train is None else n_train) <= available:
        raise DataError(
            f"{name} has {len(raw.train)} images to train and validate on; n_train={n_train} and "
            f"n_val={n_val} do not fit into that. Each must be at least 1."
        )
    if not 0 <= label_noise <= 1:
        raise DataError(f"label_noise is a share between 0 and 1, not {label_noise}.")
    if resize is not None and resize < 1:
        raise DataError(f"resize is a height and width of at least 1 pixel, not {resize}.")
    order = torch.randperm(len(raw.train), generator=_generator(_SPLIT_SEED))
    val, rest = raw.train[order[:n_val]], raw.train[order[n_val:]]
    if n_train is not None:
        rest = rest[torch.randperm(available, generator=_generator(seed, 1))[:n_train]]
    train = _with_flipped_labels(rest, label_noise, raw.classes, _generator(seed, 2))
    val = _with_flipped_labels(val, label_noise, raw.classes, _generator(seed, 3))
    splits = [split if resize is None else _resized(split, resize) for split in (train, val, raw.test)]
    if standardize:
        # Rounded, so that the tensors do not depend on the order in which threads add up.
        mean = splits[0].images.mean((0, 2, 3), keepdim=True).round(decimals=3)
        deviation = splits[0].images.std((0, 2, 3), keepdim=True).round(decimals=3).clamp_min(1e-3)
        splits = [replace(split, images=(split.images - mean) / deviation) for split in splits]
    return ImageData(name, *splits, classes=raw.classes)


def _generator(seed: int, purpose: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(1_000_003 * seed + purpose)


def _data_dir_from_environment() -> Path | None:
    folder = os.environ.get(DATA_VARIABLE)
    return Path(folder) if folder else None


def _with_flipped_labels(split: Split, share: float, classes: int, generator: torch.Generator) -> Split:
    """Replace exactly round(share * images) labels, each by another class drawn uniformly."""
    chosen = torch.randperm(len(split), generator=generator)[: round(share * len(split))]
    shift = torch.randint(1, classes, (len(chosen),), generator=generator)
    labels = split.labels.clone()
    labels[chosen] = (labels[chosen] + shift) % classes
    return replace(split, labels=labels)


def _resized(split: Split, size: int) -> Split:
    images = functional.interpolate(split.images, (size, size), mode="bilinear", antialias=True)
    return replace(split, images=images)


@DATA_SETS.register("digits")
def digits(data_dir: Path | None, download: bool) -> RawImages:
    """8 x 8 grey handwritten digits that come with scikit-learn, 1,437 + 360."""
    pixels, classes = load_digits(return_X_y=True)
    images = torch.as_tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    labels = torch.as_tensor(classes, dtype=torch.long)
    order = torch.randperm(len(labels), generator=_generator(_SPLIT_SEED, 4))
    everything = Split(images, labels)
    return RawImages(everything[order[360:]], everything[order[:360]], classes=10, default_n_val=360)


@DATA_SETS.register("mnist")
def mnist(data_dir: Path | None, download: bool) -> RawImages:
    """28 x 28 grey handwritten digits, 60,000 + 10,000, in torchvision's layout."""
    return _torchvision_set("MNIST", data_dir, download)


@DATA_SETS.register("fashion_mnist")
def fashion_mnist(data_dir: Path | None, download: bool) -> RawImages:
    """28 x 28 grey pictures of clothes, 60,000 + 10,000, in torchvision's layout."""
    return _torchvision_set("FashionMNIST", data_dir, download)


@DATA_SETS.register("cifar10")
def cifar10(data_dir: Path | None, download: bool) -> RawImages:
    """32 x 32 colour pictures of ten classes, 50,000 + 10,000: cifar10.npz, else torchvision's layout."""
    file = None if data_dir is None else data_dir / "cifar10.npz"
    if file is None or not file.is_file():
        return _torchvision_set("CIFAR10", data_dir, download)
    try:
        with file.open("rb") as handle, np.load(handle, allow_pickle=False) as arrays:
            parts = [_from_arrays(arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test")]
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        raise DataError(
            f"{file} is no CIFAR-10 archive: {error}. It must hold x_train, y_train, x_test, y_test."
        ) from error
    return RawImages(*parts, classes=10, default_n_val=5000)


def _torchvision_set(name: str, data_dir: Path | None, download: bool) -> RawImages:
    import torchvision  # slow to import, and needed by few

    if data_dir is None:
        raise DataError(
            f"{name} lies in files, and no folder is given. Set the environment variable {DATA_VARIABLE} or "
            "data_dir to the folder that holds it, and download: true to fetch it there."
        )
    try:
        parts = [
            getattr(torchvision.datasets, name)(data_dir, train=t, download=download) for t in (True, False)
        ]
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{name} is not readable in {data_dir} ({error}). Point {DATA_VARIABLE} or data_dir to the "
            "folder that holds it in torchvision's layout, or set download: true to fetch it there."
        ) from error
    splits = [_from_arrays(np.asarray(part.data), np.asarray(part.targets)) for part in parts]
    return RawImages(*splits, classes=10, default_n_val=5000)


def _from_arrays(images: np.ndarray, labels: np.ndarray) -> Split:
    """Turn uint8 images, height x width with or without channels last, into values in [0, 1]."""
    if images.ndim not in (3, 4) or images.dtype != np.uint8 or len(images) != len(labels):
        raise DataError(
            f"images must be uint8 of shape images x height x width (x channels), as many as labels, not "
            f"{images.dtype} of shape {images.shape} with {len(labels)} labels."
        )
    pixels = torch.from_numpy(np.array(images))
    pixels = pixels.unsqueeze(1) if images.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    return Split(pixels.float() / 255, torch.from_numpy(np.array(labels)).long())
