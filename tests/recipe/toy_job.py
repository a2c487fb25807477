"""A job without tensors, for tests of what all jobs share."""

from collections.abc import Iterator
from contextlib import contextmanager

from nfopt.progress import Progress
from nfopt.recipe import JOBS, Job, JobResult, Recipe, RunContext, Table
from nfopt.recipe.strict import Count, Strict


class Inner(Strict):
    width: Count = 3


class ToyRecipe(Recipe):
    repeats: Count
    inner: Inner = Inner()
    data_hash: str = "abc"


class Toy:
    """Counts how often each piece is computed, and stops before piece `stop_at` if there is one."""

    def __init__(self) -> None:
        self.computed: list[int] = []
        self.stop_at: int | None = None

    def plan(self, recipe: ToyRecipe) -> list[str]:
        return [f"count to {recipe.repeats}"]

    def run(self, recipe: ToyRecipe, context: RunContext) -> JobResult:
        """Count."""
        context.note_data("toy", recipe.data_hash)
        values = []
        for i in range(recipe.repeats):
            if i == self.stop_at:
                raise KeyboardInterrupt
            values.append(context.piece(f"piece-{i}", lambda i=i: self.square(i)))
            context.progress(Progress("count", i + 1, recipe.repeats))
        table = Table("counted", ("i", "square"), tuple((str(i), str(v)) for i, v in enumerate(values)))
        return JobResult({"squares": values}, (table,), timing={"seconds": 0.5})

    def square(self, i: int) -> int:
        self.computed.append(i)
        return i * i


@contextmanager
def registered(monkeypatch) -> Iterator[Toy]:
    toy = Toy()
    monkeypatch.setitem(JOBS._entries, "toy", Job(ToyRecipe, toy.plan, toy.run))
    yield toy
