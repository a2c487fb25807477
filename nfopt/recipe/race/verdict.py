"""The verdict of a race: each criterion with what was wanted, what was measured, and whether it is met."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from pydantic import JsonValue

from nfopt.recipe.job import Table
from nfopt.recipe.race.scores import Difference, HeatResult, overall

STEPS_WANTED = (0.5, 0.85)
MET, NOT_MET, UNKNOWN = "met", "NOT MET", "unknown"


@dataclass(frozen=True)
class Criterion:
    """One line of the verdict.

    Attributes:
        name: what is asked.
        wanted: the bar.
        measured: what was found, and on how much of the race.
        verdict: "met", "NOT MET" or "unknown".
        so_far: whether heats are missing, so that the verdict may change.
    """

    name: str
    wanted: str
    measured: str
    verdict: str
    so_far: bool


@dataclass(frozen=True)
class Judge:
    """Who is judged against whom.

    Attributes:
        results: every heat, run or not.
        candidate: key of the method that is to win.
        references: keys of tuned AdamW and, if it takes part, tuned Muon.
        ablations: keys of our own simpler versions.
        labels: how methods are called.
    """

    results: Sequence[HeatResult]
    candidate: str
    references: tuple[str, ...]
    ablations: tuple[str, ...]
    labels: Mapping[str, str]

    def criteria(self) -> list[Criterion]:
        """Return every criterion of the race, in order."""
        found = [
            self._steps(reference, wanted)
            for reference, wanted in zip(self.references, STEPS_WANTED, strict=False)
        ]
        found.append(self._test_loss(self.references[0]))
        found += [self._ablation(key) for key in self.ablations]
        found.append(self._divergence())
        return found

    def _with(self, *others: str) -> list[HeatResult]:
        keys = {self.candidate, *others}
        return [result for result in self.results if keys <= result.methods.keys()]

    def _criterion(
        self, name: str, wanted: str, count: int, judged: Callable[[], tuple[str, bool]]
    ) -> Criterion:
        if count == 0:
            return Criterion(name, wanted, "no task yet", UNKNOWN, so_far=True)
        measured, met = judged()
        so_far = count < len(self.results)
        return Criterion(name, wanted, measured, MET if met else NOT_MET, so_far)

    def _steps(self, reference: str, wanted: float) -> Criterion:
        pace = overall(self.results, self.candidate, reference)

        def judged() -> tuple[str, bool]:
            assert pace.mean is not None
            text = f"{pace.mean:.2f}x, {pace.unreached} of {pace.seeds} seeds not there"
            return text, pace.mean <= wanted

        name = f"steps to {self.labels[reference]}'s loss"
        return self._criterion(name, f"<= {wanted}x", len(pace.heats) if pace.mean else 0, judged)

    def _test_loss(self, reference: str) -> Criterion:
        results = self._with(reference)

        def judged() -> tuple[str, bool]:
            behind = [
                result.heat.name
                for result in results
                if _is_behind(result.difference(self.candidate, reference, "test"))
            ]
            text = f"behind on {len(behind)} of {len(results)}"
            return text + (f": {', '.join(behind)}" if behind else ""), not behind

        name = f"test loss beside {self.labels[reference]}"
        return self._criterion(name, "behind on none", len(results), judged)

    def _ablation(self, key: str) -> Criterion:
        results = self._with(key)

        def judged() -> tuple[str, bool]:
            each = [result.difference(self.candidate, key, "test", math.log) for result in results]
            known = [difference for difference in each if difference is not None]
            mean = pooled(known)
            better = sum(d.certain and (d.mean or 0) < 0 for d in known)
            worse = sum(d.certain and (d.mean or 0) > 0 for d in known)
            if mean.mean is None:
                return "a seed diverged", False
            error = "" if mean.error is None else f" ± {mean.error:.3f}"
            text = f"log loss {mean.mean:+.3f}{error}; {better} better, {worse} worse of {len(known)}"
            return text, mean.certain and mean.mean < 0

        name = f"test loss beside {self.labels[key]}"
        return self._criterion(name, "better by > 2 s.e.", len(results), judged)

    def _divergence(self) -> Criterion:
        results = self._with()

        def judged() -> tuple[str, bool]:
            diverged = sum(result.diverged[self.candidate] for result in results)
            runs = sum(len(result.methods[self.candidate].runs) for result in results)
            return f"{diverged} of {runs} trainings", diverged == 0

        return self._criterion("divergence in these trainings", "none", len(results), judged)


def _is_behind(difference: Difference | None) -> bool:
    """Whether a loss is higher; a seed that diverged is behind."""
    return difference is not None and (difference.mean is None or difference.mean > 0)


def pooled(differences: Sequence[Difference]) -> Difference:
    """Return the mean over tasks; its error is that of the seeds, the tasks being what they are.

    A task in which a seed diverged makes the whole unknown.
    """
    means = [difference.mean for difference in differences if difference.mean is not None]
    errors = [difference.error for difference in differences if difference.error is not None]
    if not differences or len(means) < len(differences):
        return Difference(None, None)
    error = math.hypot(*errors) / len(errors) if len(errors) == len(means) else None
    return Difference(sum(means) / len(means), error)


def verdict_table(criteria: Sequence[Criterion], candidate: str) -> Table:
    """Return the verdict for people."""
    rows = [
        (c.name, c.wanted, c.measured, c.verdict + (", so far" if c.so_far and c.verdict != UNKNOWN else ""))
        for c in criteria
    ]
    return Table(
        f"Verdict on {candidate}",
        ("criterion", "wanted", "measured", "verdict"),
        tuple(rows),
        (
            "Steps: geometric mean over tasks and seeds. Ablations: mean over tasks of the paired "
            "difference of log test loss ± its standard error over seeds, the tasks being given.",
            "So far: by the tasks that are done. Stress tests are no part of the race.",
        ),
    )


def verdict_json(criteria: Sequence[Criterion]) -> list[JsonValue]:
    """Return the verdict as JSON values."""
    return [asdict(criterion) for criterion in criteria]
