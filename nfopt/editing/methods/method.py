"""What a method of editing is: a record of options that changes a copy of the model towards target images."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from nfopt.data import Split
from nfopt.progress import ProgressCallback, silent
from nfopt.registry import Registry


@dataclass(frozen=True)
class Task:
    """What a method is given beside the model.

    Attributes:
        images: target images, a batch, as the model takes them; at least one.
        labels: the class of each, -1 where it is not known; None without any.
        source: kept images of the source domain with their labels; None without any.
        generator: for everything random, on the CPU.
        progress: hears of steps.
    """

    images: Tensor
    labels: Int[Tensor, " images"] | None
    source: Split | None
    generator: torch.Generator
    progress: ProgressCallback = silent


class Method(ABC):
    """A method of editing; a leaf is a frozen dataclass of its options, entered by `edit_method`.

    Attributes:
        name: the name it is entered under.
        needs: which of "batchnorm", "labels" it cannot do without.
        trains_on_labels: whether labels that are given shape the edit, so that they cannot judge it.
    """

    name: ClassVar[str] = "unnamed"
    needs: ClassVar[frozenset[str]] = frozenset()
    trains_on_labels: ClassVar[bool] = False

    @abstractmethod
    def fit(self, model: torch.nn.Module, task: Task) -> Mapping[str, Any]:
        """Change parameters and buffers of `model` in place; return JSON values to note.

        Args:
            model: a copy that the method may do with as it likes, in evaluation mode, no parameter of which
                requires a gradient. Parameters and buffers keep their names, types and shapes.
            task: images and what else there is.
        """

    def touches(self, model: torch.nn.Module, example: Tensor) -> list[str]:
        """Return the names of the tensors that `fit` may change; all of them unless the leaf knows better.

        Args:
            model: the model, in evaluation mode.
            example: two images.
        """
        return list(model.state_dict())

    def options(self) -> dict[str, Any]:
        """Return the options for the history, JSON values."""
        return asdict(self)  # pyright: ignore[reportArgumentType]


METHODS: Registry[type[Method]] = Registry("edit method")
M = TypeVar("M", bound=type[Method])


def edit_method(name: str) -> Callable[[M], M]:
    """Return a decorator that enters a leaf of `Method` under `name`.

    Raises:
        DuplicateNameError: there is a method of that name.
    """

    def enter(leaf: M) -> M:
        METHODS.register(name)(leaf)
        leaf.name = name
        return leaf

    return enter
