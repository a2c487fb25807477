"""Recipes: strict YAML files that drive every job."""

# The jobs enter themselves.
from nfopt.recipe import (
    adapt,
    bench_optimizers,
    compare,
    experiment,
    meta,
    prune,
    race,
    train,
    zoo,
)
from nfopt.recipe.job import JOBS, Job, JobResult, Recipe, RunContext, Table, job
from nfopt.recipe.run import LoadedRecipe, Outcome, load_recipe, recipe_faults, run_recipe
from nfopt.recipe.source import Fault

__all__ = [
    "JOBS",
    "Fault",
    "Job",
    "JobResult",
    "LoadedRecipe",
    "Outcome",
    "Recipe",
    "RunContext",
    "Table",
    "adapt",
    "bench_optimizers",
    "compare",
    "experiment",
    "job",
    "load_recipe",
    "meta",
    "prune",
    "race",
    "recipe_faults",
    "run_recipe",
    "train",
    "zoo",
]
