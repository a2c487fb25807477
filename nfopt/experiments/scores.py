"""Scores over seeds: mean, standard error, and differences paired by seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean, stdev


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean over seeds and its standard error, which is None for a single seed."""

    mean: float
    error: float | None

    def __str__(self) -> str:
        return self.shown(3)

    def shown(self, digits: int, factor: float = 1.0) -> str:
        """Return "mean±error" with so many digits behind the point, both times `factor`."""
        mean = f"{factor * self.mean:.{digits}f}"
        return mean if self.error is None else f"{mean}±{factor * self.error:.{digits}f}"


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard error of at least one number; both are NaN where one is not finite."""
    if not all(isfinite(value) for value in values):
        return Spread(float("nan"), None if len(values) < 2 else float("nan"))
    return Spread(fmean(values), stdev(values) / len(values) ** 0.5 if len(values) > 1 else None)


def paired(values: Sequence[float], reference: Sequence[float]) -> Spread:
    """Return the spread of the differences values - reference, seed by seed."""
    return spread([a - b for a, b in zip(values, reference, strict=True)])
