"""What a recipe says about its data, its model and its device."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field, JsonValue, field_validator
from torch import nn

from nfopt.data import DATA_SETS, ImageData, load_data
from nfopt.errors import NfoptError, RecipeError, unknown_name
from nfopt.models import build_model, check_model_name, check_model_options
from nfopt.recipe.strict import Count, Fraction, Index, Strict


class DataOptions(Strict):
    """The arguments of `nfopt.data.load_data`."""

    name: str
    n_train: Count | None = None
    n_val: Count | None = None
    label_noise: Fraction = 0.0
    resize: Count | None = None
    standardize: bool = True
    seed: Index = 0
    data_dir: Path | None = None
    download: bool = False

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in DATA_SETS:
            raise ValueError(str(unknown_name("data set", name, DATA_SETS)))
        return name

    def load(self) -> ImageData:
        """Return the data set; raises DataError when its files are absent."""
        return load_data(**dict(self))


class ModelOptions(Strict):
    """A model by name, with keyword arguments for it."""

    name: str
    options: dict[str, JsonValue] = Field(default={}, validate_default=True)

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        try:
            check_model_name(name)
        except NfoptError as error:
            raise ValueError(str(error)) from error
        return name

    @field_validator("options")
    @classmethod
    def _fits(cls, options: Mapping[str, Any], info: Any) -> Mapping[str, Any]:
        if "name" in info.data:
            try:
                check_model_options(info.data["name"], options)
            except NfoptError as error:
                raise ValueError(str(error)) from error
        return options

    def build(self, data: ImageData, seed: int) -> nn.Module:
        """Return the model for the images of `data`, initialised from `seed`."""
        return build_model(self.name, data.in_shape, data.classes, seed=seed, options=self.options)


def _known_device(name: str) -> str:
    if name != "auto":
        try:
            torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"{name!r} is no device; give auto, cpu, cuda or cuda:0.") from error
    return name


DeviceName = Annotated[str, AfterValidator(_known_device)]


def device_of(name: DeviceName) -> torch.device:
    """Return the device of that name; "auto" is the first CUDA device if there is one.

    Raises:
        RecipeError: a CUDA device is asked for where there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RecipeError(
            f"device: {name} is not there; {torch.cuda.device_count()} CUDA devices are. Give auto."
        )
    return device
