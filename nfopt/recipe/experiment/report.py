"""The table of an experiment: each reader's score, its difference to a reference, and what it cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, isfinite, log10
from typing import Any

from nfopt.recipe.job import Table
from nfopt.spread import Spread, paired, spread

_FACTORS = {"accuracy": 100.0}
_UNITS = {"accuracy": "accuracy (%)", "mse": "mean squared error", "tau": "Kendall's tau"}


@dataclass(frozen=True)
class Cell:
    """One reader trained on a number of nets.

    Attributes:
        reader: its name.
        label: how tables call it.
        parameters: number of its parameters.
        width: its channels.
        nets: number of training nets; None for all.
        lr: the chosen learning rate.
        at_edge: whether that is the lowest or highest of the grid.
        scores: on the test side, one per seed; None where the fit diverged at once.
        validation: the same on the validation side.
        fits: each seed's `nfopt.experiments.Fit` as JSON values.
        seconds: of a fit, the mean.
    """

    reader: str
    label: str
    parameters: int
    width: int
    nets: int | None
    lr: float
    at_edge: bool
    scores: tuple[float | None, ...]
    validation: tuple[float | None, ...]
    fits: tuple[dict[str, Any], ...]
    seconds: float

    @property
    def known(self) -> tuple[float, ...]:
        """The scores of the fits that have one."""
        return tuple(score for score in self.scores if score is not None)


@dataclass(frozen=True)
class Report:
    """What an experiment came to.

    Attributes:
        metric: name of the score.
        higher_is_better: whether a higher score is the better one.
        reference: name of the reader that paired differences are to.
        title: above table and picture.
        cells: reader after reader, for each number of nets.
        exhibits: for readers by name what a picture shows of them.
    """

    metric: str
    higher_is_better: bool
    reference: str
    title: str
    cells: tuple[Cell, ...]
    exhibits: Mapping[str, Any]

    @property
    def sizes(self) -> list[int | None]:
        """The numbers of training nets."""
        return list(dict.fromkeys(cell.nets for cell in self.cells))

    @property
    def unit(self) -> str:
        """What the score is, for people."""
        return _UNITS.get(self.metric, self.metric)

    @property
    def factor(self) -> float:
        """What scores are multiplied by for people."""
        return _FACTORS.get(self.metric, 1.0)

    def shown(self, score: float) -> str:
        """Return one score as the table shows it."""
        return _text(self, spread([score]))

    def cell(self, reader: str, nets: int | None) -> Cell:
        """Return one cell."""
        return next(cell for cell in self.cells if (cell.reader, cell.nets) == (reader, nets))

    def best(self, nets: int | None) -> str | None:
        """Return the reader with the best mean; None if none has a score."""
        found = {c.reader: spread(c.known).mean for c in self.cells if c.nets == nets and c.known}
        pick = max if self.higher_is_better else min
        return pick(found, key=lambda name: found[name]) if found else None


def table(report: Report, notes: Sequence[str]) -> Table:
    """Return the table: a row per reader, a score per number of training nets.

    With one number of nets there is a column of differences to the reference, paired by seed.
    """
    sizes = report.sizes
    single = len(sizes) == 1
    reference = report.cell(report.reference, sizes[-1])
    rows = []
    for name in dict.fromkeys(cell.reader for cell in report.cells):
        cells = [report.cell(name, nets) for nets in sizes]
        last = cells[-1]
        shown = [_shown(report, cell) for cell in cells]
        difference = [_difference(report, last, reference)] if single else []
        lr = f"{last.lr:g}{'*' if last.at_edge else ''}"
        rows.append((last.label, f"{last.parameters:,}", *shown, *difference, lr, f"{last.seconds:.0f}"))
    scores = [report.unit if nets is None else f"{nets}\nnets" for nets in sizes]
    against = [f"minus\n{reference.label}"] if single else []
    columns = ("method", "para-\nmeters", *scores, *against, "lr", "sec.")
    title = report.title if single else f"{report.title}: {report.unit} by training nets"
    more = ["Seconds: of one training, looks at the validation side included."]
    if any(cell.at_edge for cell in report.cells):
        more.append("*: the chosen learning rate is at the edge of the grid.")
    if any(None in cell.scores for cell in report.cells):
        more.append(
            "(k of n): that many trainings have a score; the others diverged before their first look."
        )
    return Table(title, columns, tuple(rows), (*notes, *more))


def _shown(report: Report, cell: Cell) -> str:
    if not cell.known:
        return "diverged"
    text = _text(report, spread(cell.known))
    whole = len(cell.known) == len(cell.scores)
    return text if whole else f"{text} ({len(cell.known)} of {len(cell.scores)})"


def _difference(report: Report, cell: Cell, reference: Cell) -> str:
    if cell.reader == reference.reader:
        return ""
    pairs = [(a, b) for a, b in zip(cell.scores, reference.scores, strict=True) if None not in (a, b)]
    if not pairs:
        return ""
    found: Spread = paired([a for a, _ in pairs if a is not None], [b for _, b in pairs if b is not None])
    sign = "+" if found.mean > 0 else ""
    return sign + _text(report, found)


def _text(report: Report, found: Spread) -> str:
    """Return a mean and its error with three figures of the mean, accuracies with one behind the point."""
    size = abs(report.factor * found.mean)
    digits = 1 if report.metric == "accuracy" else 2
    if report.metric != "accuracy" and isfinite(size) and 0 < size < 1:
        digits = min(6, 2 - floor(log10(size)))
    return f"{found.times(report.factor):.{digits}f}"
