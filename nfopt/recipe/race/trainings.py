"""All trainings of a race: what is there, what comes next, and how long it will take."""

from collections.abc import Sequence
from dataclasses import dataclass

from nfopt.progress import Progress, ProgressCallback
from nfopt.recipe.job import RunContext
from nfopt.recipe.optimizers import OptimizerOptions
from nfopt.recipe.race.crew import Crew, Finished
from nfopt.recipe.race.heat import Heat, Standing, standing
from nfopt.training import Curve


@dataclass(frozen=True)
class Entrant:
    """A method in a heat."""

    heat: Heat
    key: str
    options: OptimizerOptions

    @property
    def trainings(self) -> int:
        """How many trainings it takes in all."""
        return self.heat.trainings_of(self.key, self.options)

    @property
    def steps(self) -> int:
        """Optimizer steps of all its trainings."""
        return self.trainings * self.heat.total_steps


class Archive:
    """The curves that a run's folder holds, by the name of the training; each is read once."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._curves: dict[str, Curve] = {}

    def __call__(self, name: str) -> Curve | None:
        """Return the curve of the training `name`; None if it is not there."""
        if name not in self._curves:
            values = self._context.kept(name)
            if values is None:
                return None
            self._curves[name] = Curve(**values)
        return self._curves[name]

    def keep(self, finished: Finished) -> None:
        """Put a curve into the folder; the training's unfinished state goes."""
        name = finished.trial.name
        self._context.piece(name, lambda: finished.curve)
        self._context.state_file(name).unlink(missing_ok=True)


def train_all(
    entrants: Sequence[Entrant], archive: Archive, crew: Crew, context: RunContext, processes: int
) -> None:
    """Do every training that the entrants still need, in their order; each is kept as soon as it ends.

    What is trained next depends on earlier curves alone, so the curves are the same whoever trains and in
    whatever order trainings end.
    """
    standings = [standing(e.heat, e.key, e.options, archive) for e in entrants]
    outlook = Outlook(entrants, processes, context.progress)
    under_way: set[str] = set()
    while True:
        for index, entrant in enumerate(entrants):
            needed = standings[index].needed
            while needed and all(archive(trial.name) is not None for trial in needed):
                standings[index] = standing(entrant.heat, entrant.key, entrant.options, archive)
                needed = standings[index].needed
        pending = {
            trial.name: trial
            for state in standings
            for trial in state.needed
            if trial.name not in under_way and archive(trial.name) is None
        }
        outlook.report(standings, archive)
        for name, trial in list(pending.items())[: crew.free]:
            crew.begin(trial, context.state_file(name))
            under_way.add(name)
        if not under_way:
            return
        finished = crew.finished()
        archive.keep(finished)
        outlook.note(finished)
        under_way.discard(finished.trial.name)


class Outlook:
    """How much is done and how long the rest takes, by the seconds of the trainings of this very run."""

    def __init__(self, entrants: Sequence[Entrant], processes: int, progress: ProgressCallback) -> None:
        self._entrants = entrants
        self._processes = processes
        self._progress = progress
        self._measured: dict[tuple[str, str], tuple[float, int]] = {}

    def note(self, finished: Finished) -> None:
        """Take account of a training that has ended."""
        trial = finished.trial
        for key in ((_task(trial.task), trial.options.name), (_task(trial.task), ""), ("", "")):
            seconds, steps = self._measured.get(key, (0.0, 0))
            self._measured[key] = (seconds + finished.seconds, steps + trial.config.total_steps)

    def report(self, standings: Sequence[Standing], archive: Archive) -> None:
        """Report the share of the steps that is done, with the time left."""
        done = total = trainings = 0
        seconds: float | None = 0.0
        for entrant, state in zip(self._entrants, standings, strict=True):
            there = state.done + sum(archive(trial.name) is not None for trial in state.needed)
            steps = entrant.heat.total_steps
            done, total = done + there * steps, total + state.total * steps
            trainings += state.total - there
            rate = self._seconds_per_step(entrant)
            left = (state.total - there) * steps
            seconds = None if seconds is None or (rate is None and left) else seconds + left * (rate or 0.0)
        note = f"{trainings} trainings to go"
        if seconds is not None and trainings:
            note += f", about {_duration(seconds / self._processes)}"
        self._progress(Progress("race", done, total, note))

    def _seconds_per_step(self, entrant: Entrant) -> float | None:
        task = entrant.heat.task_name
        for key in ((task, entrant.options.name), (task, ""), ("", "")):
            if key in self._measured:
                seconds, steps = self._measured[key]
                return seconds / steps
        return None


def _task(heat_name: str) -> str:
    return heat_name.rpartition("-")[0]


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{max(minutes, 1)} min"
