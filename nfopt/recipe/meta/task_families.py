"""Which tasks a recipe meta-trains on: a family, and variants of it with their shares."""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from nfopt.meta.family import TaskFamily
from nfopt.meta.mixture import TaskDistribution, TaskMixture
from nfopt.meta.sources import load_source
from nfopt.recipe.job import Recipe, RunContext
from nfopt.recipe.records import record
from nfopt.recipe.strict import Fraction, Strict


class VariantOptions(Strict):
    """A share of the tasks that come from another family: the recipe's with some settings changed."""

    share: Fraction
    family: Annotated[TaskFamily, record(TaskFamily)]


class FamilyRecipe(Recipe):
    """The keys of every recipe whose tasks are drawn at random.

    Each of `variants` takes its `share` of the tasks, and what its `family` does not say is as in the
    recipe's `family`, from which the remaining tasks come. Half of the tasks with much data, seen once:

        variants: {large: {share: 0.5, family: {train_images: [10000, 50000], most_epochs: 1}}}
    """

    family: Annotated[TaskFamily, record(TaskFamily)] = Field(default_factory=TaskFamily)
    variants: dict[str, VariantOptions] = Field(default={})

    @model_validator(mode="before")
    @classmethod
    def _variants_begin_as_the_family(cls, values: Any) -> Any:
        """Fill up each variant's family from the recipe's."""
        variants = values.get("variants") if isinstance(values, dict) else None
        base = values.get("family", {}) if isinstance(values, dict) else None
        if not isinstance(variants, dict) or not isinstance(base, dict):
            return values
        # An unknown key of the base is a fault there, and not once more in every variant.
        base = {key: value for key, value in base.items() if key in TaskFamily.__dataclass_fields__}
        filled = {
            name: variant | {"family": base | variant["family"]}
            if isinstance(variant, dict) and isinstance(variant.get("family"), dict)
            else variant
            for name, variant in variants.items()
        }
        return values | {"variants": filled}

    @field_validator("variants")
    @classmethod
    def _shares_leave_room(cls, variants: dict[str, VariantOptions]) -> dict[str, VariantOptions]:
        total = sum(variant.share for variant in variants.values())
        if total > 1 + 1e-9:
            raise ValueError(f"the shares of all variants sum to {total:g}; they may reach 1 at most.")
        return variants

    def tasks(self) -> TaskDistribution:
        """Return what the tasks are drawn from."""
        if not self.variants:
            return self.family
        families = {name: variant.family for name, variant in self.variants.items()}
        shares = {name: variant.share for name, variant in self.variants.items()}
        left = max(0.0, 1 - sum(shares.values()))
        return TaskMixture({"": self.family} | families, {"": left} | shares)

    def note_sources(self, context: RunContext) -> None:
        """Put the hashes of all data that tasks may draw from into the resolved recipe."""
        for name, side in sorted({(n, s) for f in self.families() for n in f.sources for s in f.sides}):
            context.note_data(f"{name}-{side}", load_source(name, side).content_hash)

    def families(self) -> list[TaskFamily]:
        """Return every family that tasks may come from."""
        return [self.family, *(variant.family for variant in self.variants.values())]
