"""Spread: mean and standard error of numbers over seeds or nets, and of differences paired by them."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean, stdev


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean over seeds or nets and its standard error, which is None for a single one.

    `f"{spread:+.1f}"` is "+1.2±0.3": both in the given form, the sign before the mean alone.
    """

    mean: float
    error: float | None

    def __str__(self) -> str:
        return f"{self:.3f}"

    def __format__(self, form: str) -> str:
        mean = format(self.mean, form)
        return mean if self.error is None else f"{mean}±{format(self.error, form.removeprefix('+'))}"

    def times(self, factor: float) -> "Spread":
        """Return mean and error multiplied by a positive factor."""
        return Spread(factor * self.mean, None if self.error is None else factor * self.error)


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard error of at least one number; both are NaN where one is not finite."""
    if not all(isfinite(value) for value in values):
        return Spread(float("nan"), None if len(values) < 2 else float("nan"))
    return Spread(fmean(values), stdev(values) / len(values) ** 0.5 if len(values) > 1 else None)


def paired(values: Sequence[float], reference: Sequence[float]) -> Spread:
    """Return the spread of the differences values - reference, seed by seed."""
    return spread([a - b for a, b in zip(values, reference, strict=True)])
