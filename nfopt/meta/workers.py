"""How meta-training is spread over processes: each runs some slots, and their rows are summed."""

from typing import Protocol

from accelerate import Accelerator
from torch import Tensor


class Workers(Protocol):
    """The processes that share one meta-training."""

    @property
    def rank(self) -> int:
        """This process's number, from 0."""
        ...

    @property
    def count(self) -> int:
        """Number of processes."""
        ...

    def total(self, rows: Tensor) -> Tensor:
        """Return the elementwise sum of `rows` over all processes, on every process.

        Each process fills its own rows and leaves zeros elsewhere, so the sum adds no rounding: any number of
        processes computes the same numbers.
        """
        ...

    def wait(self) -> None:
        """Return once every process has come here."""
        ...


class OneProcess:
    """The trivial case: this process does everything."""

    rank = 0
    count = 1

    def total(self, rows: Tensor) -> Tensor:
        """Return `rows`."""
        return rows

    def wait(self) -> None:
        """Return at once."""


class AccelerateWorkers:
    """The processes that `accelerate launch` (or torchrun) started.

    Args:
        accelerator: the process's accelerator.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator

    @property
    def rank(self) -> int:
        """This process's number, from 0."""
        return self._accelerator.process_index

    @property
    def count(self) -> int:
        """Number of processes."""
        return self._accelerator.num_processes

    def total(self, rows: Tensor) -> Tensor:
        """Return the elementwise sum of `rows` over all processes, on every process."""
        summed = self._accelerator.reduce(rows.to(self._accelerator.device), reduction="sum")
        assert isinstance(summed, Tensor)
        return summed.to(rows.device)

    def wait(self) -> None:
        """Return once every process has come here."""
        self._accelerator.wait_for_everyone()
