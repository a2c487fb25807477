"""What is written down about an edit: how it was made, from what, and what its gate said."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nfopt.errors import EditingError


@dataclass(frozen=True, slots=True)
class Check:
    """One check of a gate.

    Attributes:
        name: which.
        passed: its outcome; None where what it needs was not given.
        says: one line with the numbers.
    """

    name: str
    passed: bool | None
    says: str


@dataclass(frozen=True, slots=True)
class EditStep:
    """How one edit was made.

    Attributes:
        method: name of the method.
        options: its options, JSON values.
        base: digest of the whole state that it was made for.
        result: digest of the whole state that it leads to.
        images: target images that it was made from.
        labels: how many of them had a label.
        data: SHA-256 of each set that was used ("target", "labels", "source", "held_out").
        before: scores of the base, by name.
        after: the same scores of the result.
        changes: RMS of the change over RMS of the base, for each changed tensor of floating point.
        checks: what the gate said; empty where it was off.
        notes: what the method tells of itself, JSON values.
    """

    method: str
    options: Mapping[str, Any]
    base: str
    result: str
    images: int = 0
    labels: int = 0
    data: Mapping[str, str] = field(default_factory=dict)
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    changes: Mapping[str, float] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reasons(self) -> tuple[str, ...]:
        """What the failed checks say."""
        return tuple(check.says for check in self.checks if check.passed is False)

    @property
    def accepted(self) -> bool:
        """Whether no check failed."""
        return not self.reasons

    def as_json(self) -> dict[str, Any]:
        """Return the step as JSON values; `from_json` gives it back equal."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "EditStep":
        """Return what `as_json` wrote.

        Raises:
            EditingError: the values are no step.
        """
        try:
            checks = tuple(Check(**check) for check in values["checks"])
            return cls(**{**values, "checks": checks})
        except (KeyError, TypeError) as error:
            raise EditingError(f"a step of the history is damaged: {error}.") from error

    def lines(self) -> list[str]:
        """Return the step for people."""
        chosen = ", ".join(f"{key} {_short(value)}" for key, value in self.options.items())
        lines = [f"{self.method}" + (f" ({chosen})" if chosen else "")]
        labelled = f", {self.labels} labels" if self.labels else ""
        lines.append(f"  from {self.images} target images{labelled}")
        lines += [f"  {name} {text}" for name, text in self.scores()]
        if not self.checks:
            lines.append("  the gate was off")
        for check in self.checks:
            word = {True: "passed", False: "FAILED", None: "not made"}[check.passed]
            lines.append(f"  {check.name}: {word}: {check.says}")
        return lines

    def scores(self) -> list[tuple[str, str]]:
        """Return each score's name, and its values before and after as text."""
        return [
            (name, f"{self.before[name]:.4g} -> {self.after[name]:.4g}")
            for name in self.before
            if name in self.after
        ]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
