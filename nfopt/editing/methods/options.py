"""The ranges of the options that methods of descent share."""

import math
from typing import ClassVar, Protocol

from nfopt.errors import EditingError


class DescentOptions(Protocol):
    """The options that every descent has."""

    name: ClassVar[str]

    @property
    def lr(self) -> float:
        """Learning rate."""
        ...

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        ...

    @property
    def batch_size(self) -> int:
        """Images per step."""
        ...


def check_descent(options: DescentOptions, **at_least_zero: float) -> None:
    """Raise EditingError unless lr is positive, steps and batch_size at least 1, and the rest at least 0."""
    if not (math.isfinite(options.lr) and options.lr > 0):
        raise EditingError(f"the lr of {options.name} is {options.lr}; it must be positive.")
    for name, count in (("steps", options.steps), ("batch_size", options.batch_size)):
        if count < 1:
            raise EditingError(f"{name} of {options.name} is {count}; it must be at least 1.")
    for name, value in at_least_zero.items():
        if not value >= 0:
            raise EditingError(f"{name} of {options.name} is {value}; it must be at least 0.")
