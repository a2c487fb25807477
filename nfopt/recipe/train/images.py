"""Images that a training reads: a data set in memory or a folder of pictures, with augmentation by seed."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int
from pydantic import Field, WrapValidator
from pydantic_core import PydanticCustomError
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from nfopt.data import Split
from nfopt.errors import DataError
from nfopt.recipe.inputs import DataOptions
from nfopt.recipe.strict import Count, Index, Strict
from nfopt.seeds import derive_seed

Key = tuple[int, int]
Transform = Callable[[Tensor], Tensor]


class Augmentation(Strict):
    """How training images are varied; each image and step has its own draw, fixed by the recipe's seed.

    Attributes:
        flip: mirror half of the images left to right.
        pad: pad by that many pixels on each side, then cut the image's size out of it anywhere.
        min_area: cut out a part of at least this share of the image's area and resize it; 1 for none.
    """

    flip: bool = False
    pad: Index = 0
    min_area: Annotated[float, Field(strict=True, gt=0, le=1)] = 1.0


class FolderOptions(Strict):
    """Pictures in folder/train/CLASS/, folder/val/CLASS/ and, if there is one, folder/test/CLASS/.

    Attributes:
        folder: where they lie.
        side: height and width in pixels that the model sees: the shorter side is resized to it, the middle
            cut out. Values are standardised by ImageNet's mean and deviation.
    """

    folder: Path
    side: Count = 224


def _by_keys(value: Any, _: Any) -> DataOptions | FolderOptions:
    if isinstance(value, DataOptions | FolderOptions):
        return value
    if not isinstance(value, dict) or not value.keys() & {"name", "folder"}:
        raise PydanticCustomError("fault", "needs the `name` of a data set, or a `folder` of pictures.")
    kind = FolderOptions if "folder" in value else DataOptions
    return kind.model_validate(value)


DataChoice = Annotated[DataOptions | FolderOptions, WrapValidator(_by_keys)]


class Images(Dataset[Any]):
    """Images by number, read and varied in batches.

    Args:
        read: returns one image, channels x height x width.
        labels: the class of each.
        transform: applied to each image; None for nothing.
        seed: of the transform's draws.
    """

    def __init__(
        self,
        read: Callable[[int], Tensor],
        labels: Int[Tensor, " images"],
        transform: Transform | None = None,
        seed: int = 0,
    ) -> None:
        self._read, self._labels, self._transform, self._seed = read, labels, transform, seed

    def __len__(self) -> int:
        return len(self._labels)

    def __getitems__(
        self, keys: Sequence[Key]
    ) -> tuple[Float[Tensor, "batch channels height width"], Int[Tensor, " batch"]]:
        """Return the images of the keys (number, draw); the same key always gives the same image."""
        images = torch.stack([self._varied(*key) for key in keys])
        return images, self._labels[[number for number, _ in keys]]

    def _varied(self, number: int, draw: int) -> Tensor:
        image = self._read(number)
        if self._transform is None:
            return image
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(self._seed, "image", draw, number))
            return self._transform(image)


@dataclass(frozen=True)
class ImageSets:
    """The images of a training.

    Attributes:
        name: what they are called in tables.
        train: varied by the augmentation.
        val: what the best weights are chosen by.
        test: what is reported; None if there are none.
        class_names: as many as the model has outputs.
        in_shape: channels, height and width.
        content_hash: of the images in memory; of the names and sizes of the files in a folder.
    """

    name: str
    train: Images
    val: Images
    test: Images | None
    class_names: tuple[str, ...]
    in_shape: tuple[int, int, int]
    content_hash: str

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


def load_images(data: DataOptions | FolderOptions, augment: Augmentation, seed: int) -> ImageSets:
    """Return the images that a recipe names.

    Raises:
        DataError: files or folders are absent, or the splits have different classes.
    """
    if isinstance(data, FolderOptions):
        return _from_folder(data, augment, seed)
    loaded = data.load()
    height, width = loaded.in_shape[1:]
    random = _random_transforms(augment, height, width)
    transform = v2.Compose(random) if random else None
    return ImageSets(
        loaded.name,
        _in_memory(loaded.train, transform, seed),
        _in_memory(loaded.val),
        _in_memory(loaded.test),
        tuple(map(str, range(loaded.classes))),
        loaded.in_shape,
        loaded.content_hash,
    )


def _in_memory(split: Split, transform: Transform | None = None, seed: int = 0) -> Images:
    return Images(split.images.__getitem__, split.labels, transform, seed)


def _random_transforms(augment: Augmentation, height: int, width: int) -> list[Any]:
    chosen: list[Any] = []
    if augment.min_area < 1:
        chosen.append(v2.RandomResizedCrop((height, width), scale=(augment.min_area, 1.0), antialias=True))
    if augment.pad > 0:
        chosen.append(v2.RandomCrop((height, width), padding=augment.pad))
    if augment.flip:
        chosen.append(v2.RandomHorizontalFlip())
    return chosen


def _from_folder(data: FolderOptions, augment: Augmentation, seed: int) -> ImageSets:
    side = data.side
    whole = [v2.Resize(side, antialias=True), v2.CenterCrop(side)]
    values = [
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    ]
    random = _random_transforms(augment, side, side)
    varied = [*([] if augment.min_area < 1 else whole), *random, *values]
    folders = {part: _open(data.folder, part) for part in ("train", "val")}
    if (data.folder / "test").is_dir():
        folders["test"] = _open(data.folder, "test")
    for part, folder in folders.items():
        differing = sorted(set(folder.classes) ^ set(folders["train"].classes))
        if differing:
            raise DataError(
                f"{data.folder}: train and {part} have different classes: {', '.join(differing[:5])} "
                f"{'is' if len(differing) == 1 else 'are'} in one only. Each needs a folder for every class."
            )
    fixed = v2.Compose([*whole, *values])
    images = {
        part: Images(
            _Reader(folder),
            torch.tensor(folder.targets),
            v2.Compose(varied) if part == "train" else fixed,
            seed,
        )
        for part, folder in folders.items()
    }
    return ImageSets(
        data.folder.name,
        images["train"],
        images["val"],
        images.get("test"),
        tuple(folders["train"].classes),
        (3, side, side),
        _hash_of(data.folder, folders.values()),
    )


def _open(root: Path, part: str) -> ImageFolder:
    folder = root / part
    layout = f"{root}/train/CLASS/*.jpg, {root}/val/CLASS/*.jpg and, if you like, {root}/test/CLASS/*.jpg"
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}. Pictures are expected as {layout}.")
    try:
        return ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise DataError(f"{folder} holds no pictures by class: {error} Expected: {layout}.") from error


class _Reader:
    """Reads one picture of a folder as bytes of red, green and blue."""

    def __init__(self, folder: ImageFolder) -> None:
        self._folder = folder

    def __call__(self, number: int) -> Tensor:
        path = self._folder.samples[number][0]
        try:
            return v2.functional.pil_to_tensor(self._folder.loader(path))
        except OSError as error:
            raise DataError(f"{path} cannot be read as a picture: {error}. Remove or replace it.") from error


def _hash_of(root: Path, folders: Any) -> str:
    digest = hashlib.sha256()
    for folder in folders:
        for name, _ in folder.samples:
            path = Path(name)
            digest.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode())
    return digest.hexdigest()
