"""Several processes on one recipe, started by torchrun or accelerate: the first decides and writes."""

import atexit
import os
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from nfopt.errors import NfoptError, RecipeError

T = TypeVar("T")


def process_count() -> int:
    """Return how many processes the launcher has started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that writes files and speaks to people."""
    return process_count() == 1 or int(os.environ.get("RANK", "0")) == 0


def join(device: torch.device) -> None:
    """Join the other processes, if there are any; a device of type "cpu" keeps them off the GPUs."""
    if process_count() > 1:
        PartialState(cpu=device.type == "cpu")
        atexit.register(_leave)


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def from_first(decide: Callable[[], T]) -> T:
    """Return in every process what `decide` returns in the first one; the others do not call it.

    Raises:
        NfoptError: what `decide` raised, in every process.
    """
    if process_count() == 1:
        return decide()
    said: list[T | str | None] = [None, None]
    if is_first():
        try:
            said = [decide(), None]
        except NfoptError as error:
            said = [None, str(error)]
    broadcast_object_list(said)
    value, fault = said
    if fault is not None:
        raise RecipeError(str(fault))
    return value  # pyright: ignore[reportReturnType]


def wait_for_all() -> None:
    """Return when every process is here."""
    if process_count() > 1:
        PartialState().wait_for_everyone()
