"""Jobs: what a recipe can ask for. A job is a plug-in: one strict record and one function that runs it.

To add a job, write one file in the folder of its kind, such as race/, and name it in that `__init__.py`:

    class CountRecipe(Recipe):                       # the keys of the recipe, with types and defaults
        data: DataOptions
        repeats: Count = 3

    def plan_count(recipe: CountRecipe) -> list[str]:   # what --dry-run prints; writes nothing
        return [f"count the images of {recipe.data.name}, {recipe.repeats} times"]

    @job("count", CountRecipe, plan=plan_count)      # recipes say `kind: count`
    def run_count(recipe: CountRecipe, context: RunContext) -> JobResult:
        '''Count the images of a data set.'''        # the line that `nfopt list` shows
        data = load_data(recipe.data)
        context.note_data(data.name, data.content_hash)
        counts = []
        for i in range(recipe.repeats):
            counts.append(context.piece(f"count-{i}", lambda: {"images": len(data.train)}))
            context.progress(Progress("count", i + 1, recipe.repeats))
        return JobResult(results={"counts": counts}, tables=(Table(...),))

What the function must keep to: everything random comes from seeds in the recipe; results are JSON values
without not-a-number; each finished part goes through `context.piece`, and long parts keep their own
state under `context.state_file`, so that a killed run that is started again ends with the same numbers;
pictures are written into `context.folder` with `nfopt.atomic.replacing`; nothing is printed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import Field, JsonValue

from nfopt.progress import ProgressCallback, silent
from nfopt.recipe.folder import OutputFolder
from nfopt.recipe.strict import Strict
from nfopt.registry import Registry


class Recipe(Strict):
    """The keys that every recipe has; a job's recipe is a subclass with the job's own keys.

    Attributes:
        kind: the job's name.
        output: folder for the results; without it `runs/<name of the recipe file>`, numbered if taken.
        provenance: versions, seeds and data hashes, written by nfopt into resolved.yaml; ignored when read.

    A run can be resumed with other values of the keys in `not_the_experiment`, for no result depends on them.
    """

    not_the_experiment: ClassVar[frozenset[str]] = frozenset({"output", "provenance"})

    many_processes: ClassVar[bool] = False
    """Whether processes that torchrun or accelerate has started share a run; else one alone may run it."""

    kind: str
    output: Path | None = None
    provenance: dict[str, JsonValue] = Field(default={})


@dataclass(frozen=True, slots=True)
class Table:
    """A table for people: every cell is text already.

    Attributes:
        title: one line above the table.
        columns: headings; a line break splits a heading over two lines. The first column names the row.
        rows: as many cells each as there are columns.
        notes: lines below the table: what a column means, what is left out.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobResult:
    """What a job has found.

    Attributes:
        results: JSON values, the same on every run of the recipe on one machine; saved as results.json.
        tables: shown on the screen and saved as tables.md.
        timing: JSON values that depend on the machine's mood (seconds, ratios); saved as timing.json.
        files: pictures and other files that the job has written into the output folder.
    """

    results: Mapping[str, JsonValue]
    tables: Sequence[Table] = ()
    timing: Mapping[str, JsonValue] = field(default_factory=dict)
    files: Sequence[Path] = ()


@dataclass(frozen=True)
class RunContext:
    """What a running job gets from outside: its folder and someone who listens to its progress."""

    output: OutputFolder
    progress: ProgressCallback = silent

    @property
    def folder(self) -> Path:
        """The output folder; pictures and tables go here."""
        return self.output.path

    def piece(self, name: str, compute: Callable[[], JsonValue]) -> Any:
        """Return the kept result of the piece `name`, computing and keeping it if it is not there yet.

        The name must determine the result (put the seed and a digest of the options in it).
        """
        return self.output.piece(name, compute)

    def kept(self, name: str) -> Any:
        """Return the kept result of the piece `name`; None if it is not there yet."""
        return self.output.kept(name)

    def state_file(self, name: str) -> Path:
        """Return the path for the state of an unfinished piece; it vanishes when the run is complete."""
        return self.output.state_file(name)

    def note_data(self, name: str, content_hash: str) -> None:
        """Put the hash of a data set, or of weights, that are used into resolved.yaml.

        Raises:
            RecipeError: the run is resumed and the data are not those that it began with.
        """
        self.output.note_data(name, content_hash)


R = TypeVar("R", bound=Recipe)


@dataclass(frozen=True)
class Job(Generic[R]):
    """One kind of recipe: its record, its plan for --dry-run, and the function that runs it."""

    recipe: type[R]
    plan: Callable[[R], Sequence[str]]
    run: Callable[[R, RunContext], JobResult]

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (self.run.__doc__ or "").strip().partition("\n")[0]


JOBS: Registry[Job[Any]] = Registry("job")


def job(
    kind: str, recipe: type[R], *, plan: Callable[[R], Sequence[str]]
) -> Callable[[Callable[[R, RunContext], JobResult]], Callable[[R, RunContext], JobResult]]:
    """Return a decorator that enters a function as the job `kind`.

    Raises:
        DuplicateNameError: there is a job of that name.
    """

    def enter(run: Callable[[R, RunContext], JobResult]) -> Callable[[R, RunContext], JobResult]:
        JOBS.register(kind)(Job(recipe, plan, run))
        return run

    return enter
