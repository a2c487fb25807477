"""Families of zoos that a recipe can name: what each is made of, and how its nets are made."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import nn

from nfopt.data import ImageData, Split
from nfopt.errors import NfoptError
from nfopt.models import build_model
from nfopt.recipe.inputs import DataOptions, ModelOptions
from nfopt.recipe.strict import Count, Fraction, Index, NonNegative, Positive, Strict
from nfopt.zoo import (
    FitConfig,
    HyperRanges,
    Machine,
    Members,
    Zoo,
    binary_classifiers,
    classifiers,
    image_inrs,
    sine_inrs,
)

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey picture (ITU-R BT.601)."""
Report = Callable[[int], None]
Range = tuple[Positive, Positive]


class Counts(Strict):
    """Numbers of images, waves or runs on each side."""

    train: Index
    val: Index = 0
    test: Index = 0

    @model_validator(mode="after")
    def _not_all_zero(self) -> "Counts":
        if not self.train + self.val + self.test:
            raise ValueError("a zoo needs at least one net.")
        return self


class FamilyOptions(Strict):
    """A family of zoos: what a recipe says about its nets."""

    @property
    def what(self) -> str:
        """The nets in a few words."""
        raise NotImplementedError

    def images(self) -> ImageData | None:
        """Return the images that the nets see; None where they see none."""
        return None

    def members(self, counts: Counts) -> Members:
        """Return the nets, or the runs, that are to be made."""
        return Members.counted(counts.train, counts.val, counts.test)

    def build(self, members: Members, seed: int, machine: Machine, report: Report) -> Zoo:
        """Return the nets of some members; `report` hears how many of these are done."""
        raise NotImplementedError


class SirenOptions(FamilyOptions):
    """What SIRENs of all signals share; see `nfopt.zoo.SirenConfig` and `nfopt.zoo.FitConfig`."""

    hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = (32, 32)
    omega_0: Positive = 30.0
    learning_rate: Positive = 5e-4
    max_steps: Count = 1000
    stop_psnr_db: Positive | None = 40.0

    @property
    def fit(self) -> FitConfig:
        """How a net is fitted."""
        return FitConfig(self.learning_rate, self.max_steps, self.stop_psnr_db)


class InrImages(SirenOptions):
    """SIRENs of one image each; see `nfopt.zoo.image_inrs`. The images are not standardised."""

    family: Literal["inr_images"]
    data: DataOptions
    grey: bool = False
    views: Count = 1

    def build(self, members: Members, seed: int, machine: Machine, report: Report) -> Zoo:
        """Return the nets of some members."""
        data = self.images()
        return image_inrs(
            data, members, seed=seed, hidden=self.hidden,
            omega_0=self.omega_0, fit=self.fit, views=self.views, machine=machine, report=report,
        )  # fmt: skip

    def images(self) -> ImageData:
        """Return the images."""
        return loaded(self.data.model_copy(update={"standardize": False}), self.grey)

    def members(self, counts: Counts) -> Members:
        """Return the nets, `views` of each image."""
        return Members.counted(*(self.views * count for count in (counts.train, counts.val, counts.test)))

    @property
    def what(self) -> str:
        """The nets in a few words."""
        layers = "-".join(map(str, (2, *self.hidden, 1)))
        return f"SIRENs {layers} of {self.data.name} images"


class InrSines(SirenOptions):
    """SIRENs of one sine wave each; see `nfopt.zoo.sine_inrs`."""

    family: Literal["inr_sines"]
    frequency: tuple[NonNegative, Positive] = (0.5, 10.0)
    amplitude: tuple[NonNegative, Positive] = (1.0, 1.0)
    points: Annotated[int, Field(strict=True, ge=2)] = 256

    @field_validator("frequency", "amplitude")
    @classmethod
    def _ascends(cls, given: tuple[float, float]) -> tuple[float, float]:
        if given[0] > given[1]:
            raise ValueError(f"is a range [least, largest], not {list(given)}.")
        return given

    def build(self, members: Members, seed: int, machine: Machine, report: Report) -> Zoo:
        """Return the nets of some members."""
        return sine_inrs(
            members, seed=seed, frequency=self.frequency, amplitude=self.amplitude,
            points=self.points, hidden=self.hidden, omega_0=self.omega_0, fit=self.fit, machine=machine,
            report=report,
        )  # fmt: skip

    @property
    def what(self) -> str:
        """The nets in a few words."""
        return f"SIRENs {'-'.join(map(str, (1, *self.hidden, 1)))} of waves a sin(b x)"


class ClassifierOptions(FamilyOptions):
    """What classifiers of all kinds share. The model must have no buffers (no BatchNorm)."""

    data: DataOptions
    grey: bool = False
    model: ModelOptions
    batch_images: Count = 64
    test_images: Count = 2000

    def images(self) -> ImageData:
        """Return the images."""
        return loaded(self.data, self.grey)

    def _model(self, data: ImageData, classes: int) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            # `build_model` wants a seed; the zoo has seeded torch's own generator for this net.
            seed = int(torch.randint(2**62, ()))
            return build_model(self.model.name, data.in_shape, classes, seed=seed, options=self.model.options)

        return make


class Classifiers(ClassifierOptions):
    """Classifiers with random hyper-parameters; see `nfopt.zoo.classifiers` and `nfopt.zoo.HyperRanges`."""

    family: Literal["classifiers"]
    learning_rate: Range = HyperRanges.learning_rate
    init_scale: Range = HyperRanges.init_scale
    weight_decay: Range = HyperRanges.weight_decay
    train_share: Range = HyperRanges.train_share
    steps: tuple[Count, Count] = HyperRanges.steps
    checkpoints: tuple[Fraction, ...] = (0.1, 0.4, 1.0)

    @model_validator(mode="after")
    def _makes_sense(self) -> "Classifiers":
        try:
            _ = self.ranges
        except NfoptError as error:
            raise ValueError(str(error)) from error
        if not self.checkpoints or sorted(set(self.checkpoints)) != list(self.checkpoints):
            raise ValueError(f"checkpoints must ascend, not {list(self.checkpoints)}.")
        return self

    @property
    def ranges(self) -> HyperRanges:
        """What the runs draw from."""
        return HyperRanges(
            self.learning_rate, self.init_scale, self.weight_decay, self.train_share, self.steps
        )

    def build(self, members: Members, seed: int, machine: Machine, report: Report) -> Zoo:
        """Return the nets of some members."""
        data = self.images()
        return classifiers(
            data, members, self._model(data, data.classes), seed=seed, ranges=self.ranges,
            checkpoints=self.checkpoints, batch_images=self.batch_images, test_images=self.test_images,
            machine=machine, report=report,
        )  # fmt: skip

    @property
    def what(self) -> str:
        """The nets in a few words."""
        return f"{self.model.name} on {self.data.name}, {len(self.checkpoints)} checkpoints of each run"


class BinaryClassifiers(ClassifierOptions):
    """Classifiers of two random classes each; see `nfopt.zoo.binary_classifiers`."""

    family: Literal["binary_classifiers"]
    learning_rate: Positive = 1e-3
    weight_decay: NonNegative = 1e-2
    steps: Count = 300

    def build(self, members: Members, seed: int, machine: Machine, report: Report) -> Zoo:
        """Return the nets of some members."""
        data = self.images()
        return binary_classifiers(
            data, members, self._model(data, 2), seed=seed, learning_rate=self.learning_rate,
            weight_decay=self.weight_decay, steps=self.steps, batch_images=self.batch_images,
            test_images=self.test_images, machine=machine, report=report,
        )  # fmt: skip

    @property
    def what(self) -> str:
        """The nets in a few words."""
        return f"{self.model.name} on two classes of {self.data.name}"


Family = Annotated[InrImages | InrSines | Classifiers | BinaryClassifiers, Field(discriminator="family")]


def loaded(options: DataOptions, grey: bool) -> ImageData:
    """Return a data set, in grey if asked; the last one is kept, as chunks of one zoo follow each other."""
    return _loaded(options.model_dump_json(), grey)


@lru_cache(maxsize=1)
def _loaded(options: str, grey: bool) -> ImageData:
    data = DataOptions.model_validate_json(options).load()
    if not grey or data.in_shape[0] != 3:
        return data
    splits = {side: in_grey(getattr(data, side)) for side in ("train", "val", "test")}
    return replace(data, **splits)


def in_grey(split: Split) -> Split:
    """Return a split of red, green and blue images as one of their brightness."""
    weights = split.images.new_tensor(LUMA).view(1, 3, 1, 1)
    return replace(split, images=(split.images * weights).sum(1, keepdim=True))
