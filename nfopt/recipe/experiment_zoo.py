"""Where an experiment's nets come from: a file, or a zoo that is made first."""

from pathlib import Path

from nfopt.errors import RecipeError
from nfopt.recipe.job import RunContext
from nfopt.recipe.strict import Strict
from nfopt.zoo import Zoo, load_zoo


class ZooSource(Strict):
    """A zoo in a file, as a recipe of `kind: zoo` leaves it.

    Attributes:
        file: the safetensors file.
    """

    file: Path

    def described(self) -> str:
        """Return a line for plans and titles."""
        return self.file.stem

    def open(self, context: RunContext) -> Zoo:
        """Return the zoo; raises RecipeError when there is no such file, ZooError when it is no zoo."""
        if not self.file.is_file():
            raise RecipeError(f"zoo.file: there is no {self.file}.")
        return load_zoo(self.file)
