"""What verification found, as a value that prints for people."""

from dataclasses import dataclass
from typing import TypeAlias

from nfopt.errors import PermutationSpecError

CONTROL_CHANGE = 1e-9
Place: TypeAlias = tuple[str, int]


@dataclass(frozen=True, slots=True)
class NegativeControl:
    """One group permuted everywhere but at some of its occurrences, which must change the output.

    Attributes:
        group: name of the group.
        skipped: the (tensor, dimension) pairs that were left as they were.
        change: max |dy| / std(y) of the output.
    """

    group: str
    skipped: tuple[Place, ...]
    change: float

    @property
    def changed(self) -> bool:
        """Whether the output changed, as it should."""
        return not self.change <= CONTROL_CHANGE

    def __str__(self) -> str:
        shown = ", ".join(f"{tensor}[{dim}]" for tensor, dim in self.skipped[:3])
        more = f", ... ({len(self.skipped)})" if len(self.skipped) > 3 else ""
        return f"{self.group} without {shown}{more}: change {self.change:.1e}"


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """What `verify` found.

    Attributes:
        model: the module and the inputs that it ran on.
        groups: number of groups permuted at once in each trial.
        tolerance: the largest error that counts as rounding.
        errors: max |dy| / std(y) of each trial.
        controls: the negative controls.
        guilty: when a trial failed, the groups that fail alone, with their errors, worst first.
        notes: what else is worth knowing, for people.
    """

    model: str
    groups: int
    tolerance: float
    errors: tuple[float, ...]
    controls: tuple[NegativeControl, ...] = ()
    guilty: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def max_error(self) -> float:
        """Largest error over the trials, relative to the standard deviation of the output."""
        return max(self.errors, key=lambda error: float("inf") if error != error else error)

    @property
    def passed(self) -> bool:
        """Whether every permuted model computed what the model does. Controls do not count."""
        return all(error <= self.tolerance for error in self.errors)

    @property
    def suspected_ties(self) -> tuple[NegativeControl, ...]:
        """Controls that did not change the output: the group may tie more than it must.

        A few are innocent: a tensor whose value the output does not depend on, such as a key bias in softmax.
        """
        return tuple(control for control in self.controls if not control.changed)

    def raise_if_failed(self) -> "VerificationReport":
        """Return the report itself, or raise PermutationSpecError when it did not pass."""
        if not self.passed:
            raise PermutationSpecError(f"the spec is not a symmetry of the model.\n{self}")
        return self

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        lines = [
            f"{verdict}: {self.model}, {self.groups} groups at once, {len(self.errors)} trials, "
            f"largest error {self.max_error:.1e} (tolerance {self.tolerance:.0e})"
        ]
        lines.extend(f"  not a symmetry: {name} (error {error:.1e})" for name, error in self.guilty[:10])
        changed = sum(control.changed for control in self.controls)
        lines.append(f"  negative controls that changed the output: {changed} of {len(self.controls)}")
        lines.extend(f"  suspected needless tie: {control}" for control in self.suspected_ties)
        lines.extend(f"  note: {note}" for note in self.notes)
        return "\n".join(lines)
