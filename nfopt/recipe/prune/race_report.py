"""What a race of pruning masks comes to: accuracies, paired differences with controls, times, pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import JsonValue

from nfopt.recipe.job import Table
from nfopt.recipe.prune.plots import plot_accuracies
from nfopt.spread import spread

DENSE = "dense"


@dataclass(frozen=True)
class RaceRows:
    """The rows of a race with what is needed to read them.

    Attributes:
        rows: one for each trained copy: heat, method, control, seed, density, test_accuracy, seconds.
        heats: names, in order.
        labels: how each method is called, in order.
        densities: kept fractions.
        rivals: methods at initialisation that `ours` is compared with.
        ours: the method that the verdict is about.
        reference: where the gap begins.
        goal: where the gap ends.
    """

    rows: Sequence[Any]
    heats: tuple[str, ...]
    labels: dict[str, str]
    densities: tuple[float, ...]
    rivals: tuple[str, ...]
    ours: str
    reference: str
    goal: str

    def of(self, heat: str, method: str, density: float, control: str = "none") -> dict[int, float]:
        """Return the test accuracy of every seed, in percent."""
        return {
            row["seed"]: 100 * row["test_accuracy"]
            for row in self.rows
            if (row["heat"], row["method"], row["density"], row["control"])
            == (heat, method, density, control)
        }

    def seconds(self, heat: str, method: str) -> float:
        """Return the mean time to make a mask."""
        found = [r["seconds"] for r in self.rows if (r["heat"], r["method"]) == (heat, method)]
        return fmean(found) if found else 0.0

    def best_rival(self, heat: str, density: float) -> str:
        """Return the rival of the highest mean accuracy."""
        return max(self.rivals, key=lambda method: fmean(self.of(heat, method, density).values()))

    def verdict(self, heat: str, density: float) -> dict[str, JsonValue]:
        """Return the paired differences of `ours` to its rivals and controls, [mean, standard error]."""
        ours = self.of(heat, self.ours, density)
        found: dict[str, JsonValue] = {}
        if self.rivals:
            rival = self.best_rival(heat, density)
            found["best_rival"] = rival
            found["against_best_rival"] = paired(ours, self.of(heat, rival, density))
        found["against_reference"] = paired(ours, self.of(heat, self.reference, density))
        for control in ("shuffled", "reinitialised"):
            other = self.of(heat, self.ours, density, control)
            if other:
                found[f"against_{control}"] = paired(ours, other)
        reference, goal = (fmean(self.of(heat, m, density).values()) for m in (self.reference, self.goal))
        if goal - reference > 0.1:
            found["gap_closed"] = (fmean(ours.values()) - reference) / (goal - reference)
        return found


def paired(ours: dict[int, float], theirs: dict[int, float]) -> list[JsonValue]:
    """Return mean and standard error of the differences seed by seed; the error is 0 for one seed."""
    found = spread([value - theirs[seed] for seed, value in ours.items()])
    return [found.mean, found.error or 0.0]


def verdicts(race: RaceRows) -> dict[str, JsonValue]:
    """Return the verdict of every heat and density."""
    return {heat: {f"{d:g}": race.verdict(heat, d) for d in race.densities} for heat in race.heats}


def tables(race: RaceRows) -> tuple[Table, ...]:
    """Return the accuracies of each heat, and what they say of `ours`."""
    return (*(_accuracies(race, heat) for heat in race.heats), _verdict(race))


def _accuracies(race: RaceRows, heat: str) -> Table:
    rows = []
    for method, label in race.labels.items():
        seconds = f"{race.seconds(heat, method):.1f}"
        rows.append((label, *(_cell(race.of(heat, method, d)) for d in race.densities), seconds))
        for control, mark in (("shuffled", "  shuffled"), ("reinitialised", "  new weights")):
            cells = [_cell(race.of(heat, method, d, control)) for d in race.densities]
            if any(cells):
                rows.append((mark, *cells, ""))
    seeds = sorted({row["seed"] for row in race.rows})
    dense = _cell(race.of(heat, DENSE, 1.0))
    columns = ("mask by", *(f"{100 * d:g} %\nkept" for d in race.densities), "mask,\nseconds")
    error = " and standard error" if len(seeds) > 1 else ""
    notes = (f"Test accuracy, mean{error} over {len(seeds)} seeds; the dense net: {dense}.",)
    return Table(f"{heat}: test accuracy (%)", columns, tuple(rows), notes)


def _verdict(race: RaceRows) -> Table:
    rows = []
    for heat in race.heats:
        for density in race.densities:
            found: Any = race.verdict(heat, density)
            rival = race.labels.get(found.get("best_rival"), "")
            share = found.get("gap_closed")
            rows.append(
                (
                    f"{heat} {100 * density:g} %",
                    rival,
                    _difference(found.get("against_best_rival")),
                    _difference(found["against_reference"]),
                    _difference(found.get("against_shuffled")),
                    _difference(found.get("against_reinitialised")),
                    "" if share is None else f"{share:.2f}",
                )
            )
    ours = race.labels[race.ours]
    reference = f"over\n{race.labels[race.reference]}"
    columns = ("", "best rival", "over it", reference, "over own\nshuffle", "over new\nweights", "gap")
    notes = (
        f"Points of test accuracy of {ours}, paired by seed, with the standard error of the difference.",
        f"The gap: from {race.labels[race.reference]} (0) to {race.labels[race.goal]} (1).",
    )
    return Table(f"{ours}, compared", columns, tuple(rows), notes)


def _cell(accuracies: dict[int, float]) -> str:
    return f"{spread([*accuracies.values()]):.1f}" if accuracies else ""


def _difference(pair: Any) -> str:
    return "" if pair is None else f"{pair[0]:+.1f}±{pair[1]:.1f}"


def pictures(race: RaceRows, folder: Path) -> tuple[Path, ...]:
    """Draw accuracy against density, a picture for each heat, with the shuffled control of `ours`."""
    files = []
    for heat in race.heats:
        ways = {label: (method, "none") for method, label in race.labels.items()}
        ways[f"{race.labels[race.ours]}, shuffled"] = (race.ours, "shuffled")
        lines = {}
        for label, (method, control) in ways.items():
            found = [race.of(heat, method, d, control) for d in race.densities]
            if all(found):
                lines[label] = [[share / 100 for share in each.values()] for each in found]
        file = folder / f"accuracies-{heat}.png"
        count = len({row["seed"] for row in race.rows})
        plot_accuracies(file, race.densities, lines, f"{heat}: nets trained under masks, {count} seeds")
        files.append(file)
    return tuple(files)
