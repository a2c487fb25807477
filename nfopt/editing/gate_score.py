"""How well a gate knows good edits from bad ones, counted where the truth is known."""

from collections.abc import Iterable
from dataclasses import dataclass

from nfopt.editing.edit import Edit
from nfopt.errors import EditingError


@dataclass(frozen=True, slots=True)
class Outcome:
    """One edit, what its gate said, and the truth that the gate did not see.

    Attributes:
        accepted: what the gate said.
        before: accuracy of the base on target images that neither method nor gate saw, in [0, 1].
        after: that of the edited model.
    """

    accepted: bool
    before: float
    after: float

    @classmethod
    def of(cls, edit: Edit, before: float, after: float) -> "Outcome":
        """Return the outcome of an edit with its true accuracies."""
        return cls(edit.accepted, before, after)


@dataclass(frozen=True, slots=True)
class GateScore:
    """Counts over outcomes; an edit is harmful or good where it moves accuracy by more than the margin.

    Attributes:
        harmful: edits that lose more than the margin.
        harmful_refused: how many of them the gate refused.
        good: edits that gain more than the margin.
        good_refused: how many of them the gate refused.
        neutral: edits in between.
        neutral_refused: how many of them the gate refused.
    """

    harmful: int
    harmful_refused: int
    good: int
    good_refused: int
    neutral: int
    neutral_refused: int

    @property
    def catches(self) -> float | None:
        """Share of the harmful edits that are refused; None if there were none."""
        return self.harmful_refused / self.harmful if self.harmful else None

    @property
    def false_alarms(self) -> float | None:
        """Share of the good edits that are refused; None if there were none."""
        return self.good_refused / self.good if self.good else None

    def __str__(self) -> str:
        return (
            f"refused {self.harmful_refused} of {self.harmful} harmful edits, {self.good_refused} of "
            f"{self.good} good ones and {self.neutral_refused} of {self.neutral} without effect"
        )


def gate_score(outcomes: Iterable[Outcome], *, margin: float = 0.01) -> GateScore:
    """Return how often a gate refused harm, and how often it refused good.

    Args:
        outcomes: edits with the truth about them.
        margin: changes of accuracy up to this are neither harm nor good.

    Raises:
        EditingError: the margin is negative.
    """
    if not margin >= 0:
        raise EditingError(f"margin is {margin}; give the change of accuracy that counts as none, 0 or more.")
    groups: dict[str, list[bool]] = {"harmful": [], "good": [], "neutral": []}
    for outcome in outcomes:
        gain = outcome.after - outcome.before
        kind = "harmful" if gain < -margin else "good" if gain > margin else "neutral"
        groups[kind].append(not outcome.accepted)
    return GateScore(
        len(groups["harmful"]),
        sum(groups["harmful"]),
        len(groups["good"]),
        sum(groups["good"]),
        len(groups["neutral"]),
        sum(groups["neutral"]),
    )
