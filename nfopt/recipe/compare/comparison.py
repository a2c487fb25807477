"""What a comparison of optimizers shows: steps to the reference's loss, final losses, and their spread."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

from pydantic import JsonValue

from nfopt.metrics import steps_to_target
from nfopt.recipe.job import Table
from nfopt.recipe.optimizers import OptimizerOptions
from nfopt.training import Curve

_HEADS = (
    "method",
    "steps to\ntarget",
    "train\nloss",
    "val\nloss",
    "test\nloss",
    "test\nacc. %",
    "step\ntime",
)


@dataclass(frozen=True)
class Method:
    """A method with the candidate that it was tuned to.

    Attributes:
        key: its key in the recipe.
        label: its name in tables.
        options: the chosen candidate.
        candidates: mean final validation loss of every candidate; None if a seed diverged.
        runs: the chosen candidate's curves, one per seed.
        tuned: names of the options that were tuned.
    """

    key: str
    label: str
    options: OptimizerOptions
    candidates: tuple[tuple[OptimizerOptions, float | None], ...]
    runs: tuple[Curve, ...]
    tuned: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Methods that were trained from equal starts on equal batches.

    Attributes:
        title: one line.
        methods: in the order of the table.
        reference: key of the method whose final validation loss is the target.
        seeds: the seed of each run of a method.
        evaluate_every: steps between points of the curves.
    """

    title: str
    methods: tuple[Method, ...]
    reference: str
    seeds: tuple[int, ...]
    evaluate_every: int

    @cached_property
    def targets(self) -> tuple[float | None, ...]:
        """The reference's final validation loss by seed; None where the reference diverged."""
        return tuple(run.val_loss[-1] if run.final else None for run in self._reference.runs)

    @property
    def mean_target(self) -> float | None:
        """The mean of the targets; None if there is none."""
        known = [target for target in self.targets if target is not None]
        return fmean(known) if known else None

    @property
    def _reference(self) -> Method:
        return next(method for method in self.methods if method.key == self.reference)

    def steps_to_target(self, method: Method) -> list[int | None]:
        """Return for each seed the first step at which `method` is at the target; None if it never is."""
        return [
            None if target is None else steps_to_target(run.steps, run.val_loss, target)
            for run, target in zip(method.runs, self.targets, strict=True)
        ]

    def as_json(self) -> dict[str, JsonValue]:
        """Return everything as JSON values."""
        return {
            "reference": self.reference,
            "target_val_loss": list(self.targets),
            "methods": {method.key: self._method_as_json(method) for method in self.methods},
        }

    def _method_as_json(self, method: Method) -> dict[str, Any]:
        runs = zip(self.seeds, self.steps_to_target(method), method.runs, strict=True)
        return {
            "label": method.label,
            "chosen": plain(method.options),
            "candidates": [
                {"options": plain(options), "mean_final_val_loss": loss}
                for options, loss in method.candidates
            ],
            "runs": [{"seed": seed, "steps_to_target": steps} | asdict(run) for seed, steps, run in runs],
        }

    def table(self, step_seconds: Mapping[str, float]) -> Table:
        """Return the table for people.

        Args:
            step_seconds: seconds per step by method; shown as ratios to the reference's.
        """
        unit = step_seconds[self.reference]
        rows = [
            (method.label, *self._cells(method), f"{step_seconds[method.key] / unit:.2f}x")
            for method in self.methods
        ]
        return Table(self.title, _HEADS, tuple(rows), self._notes())

    def _cells(self, method: Method) -> tuple[str, ...]:
        diverged = sum(run.diverged_at is not None for run in method.runs)
        if diverged:
            return ("diverged", "", f"{diverged} of {len(method.runs)}", "", "")
        finals = [run.final for run in method.runs]
        return (
            steps_cell(self.steps_to_target(method)),
            f"{fmean(final['train']['loss'] for final in finals):.3f}",
            spread([final["val"]["loss"] for final in finals], ".3f"),
            spread([final["test"]["loss"] for final in finals], ".3f"),
            spread([100 * final["test"]["accuracy"] for final in finals], ".1f"),
        )

    def _notes(self) -> tuple[str, ...]:
        count, reference = len(self.seeds), self._reference.label
        shown = f"mean ± standard deviation over {count} seeds" if count > 1 else "one seed"
        notes = [
            f"Losses in nats at the end: {shown}. Each seed gives all methods the same start and batches.",
            f"Target: the final validation loss of {reference!r}, seed by seed; "
            f"looked at every {self.evaluate_every} steps.",
            f"Step time: forward, backward and update, over that of {reference!r}, in turns.",
        ]
        for method in self.methods:
            if method.tuned:
                beyond = ", ".join(edges(method))
                at_edge = f" It is at the edge of the {beyond} tried: try more." if beyond else ""
                chosen = ", ".join(f"{name} {getattr(method.options, name)}" for name in method.tuned)
                notes.append(
                    f"{method.label!r} has {chosen}, the best of {len(method.candidates)} by the very "
                    f"validation loss in the table.{at_edge}"
                )
        return tuple(notes)


def edges(method: Method) -> list[str]:
    """Return the tuned options whose chosen number is the smallest or largest tried: a better may lie beyond.

    Zero is no such edge where it is the smallest, for nothing lies below it.
    """
    found = []
    for name in method.tuned:
        tried = {getattr(options, name) for options, _ in method.candidates}
        numbers = [value for value in tried if isinstance(value, int | float) and not isinstance(value, bool)]
        chosen = getattr(method.options, name)
        if len(numbers) > 1 and (chosen == max(numbers) or (chosen == min(numbers) and chosen != 0)):
            found.append(name)
    return found


def plain(options: OptimizerOptions) -> dict[str, Any]:
    """Return the options as JSON values."""
    return options.model_dump(mode="json", exclude={"label", "tune"})


def steps_cell(steps: Sequence[int | None]) -> str:
    """Return the mean over the seeds that reached the target, and how many did unless all."""
    reached = [step for step in steps if step is not None]
    if not reached:
        return "never"
    mean = f"{fmean(reached):.0f}"
    return mean if len(reached) == len(steps) else f"{mean} ({len(reached)}/{len(steps)})"


def spread(values: Sequence[float], form: str) -> str:
    """Return mean and standard deviation; one value alone has no deviation to show."""
    return f"{fmean(values):{form}}" + (f"±{stdev(values):{form}}" if len(values) > 1 else "")
