"""Progress of long work as plain records, handed to a callback; how they are shown is the caller's affair."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """Where one piece of long work stands.

    Attributes:
        task: name of the work, stable over its records ("train nfopt").
        done: units finished so far, 0 <= done <= total.
        total: units in all.
        note: a short line for people ("loss 0.31").
    """

    task: str
    done: int
    total: int
    note: str = ""


ProgressCallback = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Ignore a progress record: the default callback."""
