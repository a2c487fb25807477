"""Where an experiment's nets come from: a file, or a zoo that is made first."""

from pathlib import Path

from pydantic import model_validator

from nfopt.errors import RecipeError
from nfopt.recipe.inputs import DeviceName
from nfopt.recipe.job import RunContext
from nfopt.recipe.strict import Count, Index, Strict
from nfopt.recipe.zoo.families import Counts, Family
from nfopt.recipe.zoo.zoo import ZOO_FILE, ZooRecipe, plan_zoo, run_zoo
from nfopt.zoo import Zoo, load_zoo


class MadeZoo(Strict):
    """A zoo that the experiment makes in its own folder; the keys of `kind: zoo`."""

    nets: Family
    counts: Counts
    seed: Index = 0
    chunk: Count = 256
    lanes: Count | None = None
    workers: Count | None = None

    def recipe(self, device: DeviceName) -> ZooRecipe:
        """Return the recipe that makes it."""
        return ZooRecipe(kind="zoo", device=device, **dict(self))


class ZooSource(Strict):
    """A zoo in a file, or one that is made.

    Attributes:
        file: a safetensors file as a recipe of `kind: zoo` leaves it.
        make: what to make instead.
        label: how titles call it.
    """

    file: Path | None = None
    make: MadeZoo | None = None
    label: str | None = None

    @model_validator(mode="after")
    def _is_one_of_both(self) -> "ZooSource":
        if (self.file is None) == (self.make is None):
            raise ValueError(
                "has either a file or a zoo to make. To read a file where a recipe makes one, give "
                "zoo.make=null zoo.file=FILE."
            )
        return self

    @property
    def name(self) -> str:
        """How titles call it."""
        if self.label is not None:
            return self.label
        return self.file.stem if self.file is not None else "the zoo"

    def plan(self) -> list[str]:
        """Return what a run would do for it."""
        if self.make is None:
            return [f"read the zoo {self.file}"]
        return plan_zoo(self.make.recipe("auto"))

    def open(self, context: RunContext, device: DeviceName) -> Zoo:
        """Return the zoo, made in the output folder if it is to be made.

        Raises:
            RecipeError: there is no such file.
            ZooError: the file is no zoo, or the zoo cannot be made.
        """
        if self.make is not None:
            run_zoo(self.make.recipe(device), context)
            return load_zoo(context.folder / ZOO_FILE)
        assert self.file is not None
        if not self.file.is_file():
            raise RecipeError(f"zoo.file: there is no {self.file}. Make it with a recipe of kind: zoo.")
        return load_zoo(self.file)
