"""What recipes say about the tasks over a zoo."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator

from nfopt.errors import NfoptError
from nfopt.experiments.forward import omega_of
from nfopt.experiments.tasks import IMAGE_EDITS, Classification, Editing, Embedding, Ranking, Regression, Task
from nfopt.recipe.strict import Count, Fraction, NonNegative, Positive, Strict
from nfopt.zoo import Compose, Mask, Noise, Zoo


class _Options(Strict):
    name: Any

    @property
    def title(self) -> str:
        """What tables and pictures call the task."""
        return self.name


class ClassificationOptions(_Options):
    """The class of each net."""

    name: Literal["classification"]
    fact: str = "label"

    def build(self, zoo: Zoo) -> Task:
        """Return the task."""
        return Classification(self.fact)


class RegressionOptions(_Options):
    """A number known of each net."""

    name: Literal["regression"]
    fact: str = "frequency"

    def build(self, zoo: Zoo) -> Task:
        """Return the task."""
        return Regression(self.fact)


class RankingOptions(_Options):
    """The accuracy of each net, scored by Kendall's tau; `loss` is "bce" or "mse"."""

    name: Literal["ranking"]
    fact: str = "test_accuracy"
    loss: Literal["bce", "mse"] = "bce"

    def build(self, zoo: Zoo) -> Task:
        """Return the task."""
        return Ranking(self.fact, self.loss)


class EmbeddingOptions(_Options):
    """An embedding from views with noise (a share of each tensor's spread) and masks (a share of weights)."""

    name: Literal["embedding"]
    facts: Annotated[tuple[str, ...], Field(min_length=1)] = ("amplitude", "frequency")
    dimensions: Annotated[int, Field(ge=2)] = 16
    temperature: Positive = 0.1
    noise: NonNegative = 0.2
    mask: Fraction = 0.5

    def build(self, zoo: Zoo) -> Task:
        """Return the task."""
        return Embedding(
            Compose((Noise(self.noise), Mask(self.mask))), self.facts, self.dimensions, self.temperature
        )


class EditingOptions(_Options):
    """An operation on the image that each net holds; with `nets`, the mean image of so many edited nets."""

    name: Literal["editing"]
    edit: str = "dilate"
    size: Annotated[int, Field(ge=3)] = 28
    output_scale: Positive = 0.01
    nets: Count = 1

    @property
    def title(self) -> str:
        """What tables and pictures call the task, which edit it is included."""
        return f"{self.name} ({self.edit}{f', mean of {self.nets} nets' if self.nets > 1 else ''})"

    @field_validator("edit")
    @classmethod
    def _is_known(cls, edit: str) -> str:
        try:
            _ = IMAGE_EDITS[edit]
        except NfoptError as error:
            raise ValueError(str(error)) from error
        return edit

    def build(self, zoo: Zoo) -> Task:
        """Return the task; raises ExperimentError when the nets hold no images."""
        return Editing(self.edit, self.size, self.output_scale, omega_of(zoo), self.nets)


TaskOptions: TypeAlias = Annotated[
    ClassificationOptions | RegressionOptions | RankingOptions | EmbeddingOptions | EditingOptions,
    Field(discriminator="name"),
]
