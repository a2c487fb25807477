"""What a race recipe says: tasks, methods with their grids, seeds, and which part of it to run."""

import re
from typing import Annotated, Any, ClassVar

from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator

from nfopt.errors import unknown_name
from nfopt.recipe.inputs import DeviceName
from nfopt.recipe.job import Recipe
from nfopt.recipe.optimizers import OptimizerChoice
from nfopt.recipe.race.heat import Heat, RaceTask
from nfopt.recipe.race.search import SearchName, candidate_count
from nfopt.recipe.race.trainings import Entrant
from nfopt.recipe.strict import Count, Index, Positive, Strict, fault_at


class Only(Strict):
    """The part of a race that a run does; tables are always made of everything that the folder holds.

    Attributes:
        tasks: keys of tasks, or of single heats such as fmnist-mlp-500; None for all; [] makes tables only.
        methods: keys of methods; None for all.
    """

    tasks: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None


class RaceRecipe(Recipe):
    """The keys of `kind: race`.

    Attributes:
        tasks: the tasks by key.
        methods: the optimizers by key, in the order of the tables. One with `tune` is tuned in every heat, by
            mean final validation loss over the tuning seeds; all of them try equally many settings.
        references: keys of the methods whose final validation loss is a target; the first is the unit.
        candidate: key of the method that the verdict is about.
        ablations: keys of the methods that it must beat to have earned its complexity.
        search: "product" or "coordinate"; see nfopt/recipe/race/search.py.
        settings: by heat and method, options that an earlier race has found: there the method is not tuned.
        tuning_seeds: seeds by which settings are chosen, none of them reported.
        seeds: seeds that are reported.
        unreached_factor: what a target that is never reached counts as, in full lengths.
        processes: trainings at a time, each in a process of its own.
        threads: threads of each training.
        device: "auto", "cpu", "cuda" or "cuda:0".
        planned: shares of a heat's length. Methods without `tune` are also trained over so many steps, their
            schedules ending there: how short a training may be planned that ends at a tuned method's loss.
        only: the part of the race to run now.
    """

    # The name of a training's piece says all that its numbers depend on but these two, so that a race can be
    # resumed with more tasks, methods or seeds.
    not_the_experiment: ClassVar[frozenset[str]] = frozenset()

    tasks: Annotated[dict[str, RaceTask], Field(min_length=1)]
    methods: Annotated[dict[str, OptimizerChoice], Field(min_length=1)]
    references: Annotated[tuple[str, ...], Field(min_length=1, max_length=2)] = ("adamw", "muon")
    candidate: str = "nfopt"
    ablations: tuple[str, ...] = ("nominal",)
    search: SearchName = "coordinate"
    settings: dict[str, dict[str, dict[str, JsonValue]]] = Field(default={})
    tuning_seeds: Annotated[tuple[Index, ...], Field(min_length=1)] = (100,)
    seeds: Annotated[tuple[Index, ...], Field(min_length=1)] = (0, 1, 2, 3, 4)
    unreached_factor: Positive = 2.0
    planned: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    processes: Count = 1
    threads: Count = 1
    device: DeviceName = "auto"
    only: Only = Only()

    @field_validator("tasks", "methods")
    @classmethod
    def _keys_are_names(cls, entries: dict[str, Any]) -> dict[str, Any]:
        for key in entries:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", key):
                raise ValueError(f"{key!r} is no name: give letters, digits, -, _ and . only.")
        return entries

    @model_validator(mode="after")
    def _belongs_together(self) -> "RaceRecipe":
        faults: list[tuple[tuple[str | int, ...], str]] = []
        for place, names in (
            (("references",), self.references),
            (("candidate",), (self.candidate,)),
            (("ablations",), self.ablations),
            (("only", "methods"), self.only.methods or ()),
        ):
            unknown = [name for name in names if name not in self.methods]
            faults += [(place, str(unknown_name("method", name, self.methods))) for name in unknown]
        known = [*self.tasks, *(heat.name for heat in heats(self))]
        for name in self.only.tasks or ():
            if name not in known:
                faults.append((("only", "tasks"), str(unknown_name("task", name, known))))
        faults += self._seed_faults() + self._budget_faults() + self._settings_faults()
        if faults:
            raise fault_at("race", self.model_dump(mode="json"), *faults)
        return self

    def _seed_faults(self) -> list[tuple[tuple[str | int, ...], str]]:
        faults: list[tuple[tuple[str | int, ...], str]] = []
        for key, seeds in (("seeds", self.seeds), ("tuning_seeds", self.tuning_seeds)):
            if len(set(seeds)) < len(seeds):
                faults.append(((key,), "must be distinct: a seed given twice is no second sample."))
        shared = sorted(set(self.seeds) & set(self.tuning_seeds))
        if shared:
            message = f"must not hold a reported seed, by which nothing may be chosen: {shared}."
            faults.append((("tuning_seeds",), message))
        if list(self.planned) != sorted(set(self.planned)):
            faults.append((("planned",), "must rise from share to share, each given once."))
        return faults

    def _budget_faults(self) -> list[tuple[tuple[str | int, ...], str]]:
        searches: list[SearchName] = [heat.search for heat in heats(self)]
        for search in dict.fromkeys(searches):
            counts = {
                key: count
                for key, options in self.methods.items()
                if (count := candidate_count(options, search))
            }
            if len(set(counts.values())) > 1:
                shown = ", ".join(f"{key} {count}" for key, count in counts.items())
                message = (
                    f"all tuned methods must try equally many settings; by {search} search it is {shown}."
                )
                return [(("methods",), message)]
        return []

    def _settings_faults(self) -> list[tuple[tuple[str | int, ...], str]]:
        faults: list[tuple[tuple[str | int, ...], str]] = []
        known = [heat.name for heat in heats(self)]
        for heat, methods in self.settings.items():
            if heat not in known:
                faults.append((("settings", heat), str(unknown_name("heat", heat, known))))
            for key, values in methods.items():
                place = ("settings", heat, key)
                if key not in self.methods:
                    faults.append((place, str(unknown_name("method", key, self.methods))))
                    continue
                try:
                    self.methods[key].varied(**values)
                except ValidationError as error:
                    faults += [((*place, *details["loc"]), details["msg"]) for details in error.errors()]
        return faults


def heats(recipe: RaceRecipe) -> list[Heat]:
    """Return every heat: each task at each of its lengths."""
    return [
        Heat(
            name,
            task,
            total_steps,
            task.search or recipe.search,
            recipe.tuning_seeds,
            recipe.seeds,
            recipe.device,
            recipe.settings.get(f"{name}-{total_steps}", {}),
        )
        for name, task in recipe.tasks.items()
        for total_steps in task.total_steps
    ]


def entrants(recipe: RaceRecipe) -> list[Entrant]:
    """Return every method in every heat that the recipe's `only` asks for, planned lengths included."""
    only = recipe.only
    found = [
        Entrant(of_length, key, options)
        for heat in heats(recipe)
        if only.tasks is None or heat.name in only.tasks or heat.task_name in only.tasks
        for key, options in recipe.methods.items()
        if only.methods is None or key in only.methods
        for of_length in (heat, *planned_heats(recipe, heat, key).values())
    ]
    # A planned length may be that of another heat: then its trainings are those.
    return list({(entrant.key, entrant.heat.name): entrant for entrant in found}.values())


def planned_heats(recipe: RaceRecipe, heat: Heat, key: str) -> dict[float, Heat]:
    """Return the shorter heats, by share, that a method runs besides; none for one that is tuned."""
    return {} if recipe.methods[key].tune else {share: heat.planned(share) for share in recipe.planned}


RaceRecipe.not_the_experiment = frozenset(RaceRecipe.model_fields) - {"kind", "threads", "device"}
