"""Recipes: strict YAML files that drive every job."""

# The jobs enter themselves.
from nfopt.recipe import (
    adapt,
    adapt_folder,
    bench_optimizers,
    compare,
    constant_mixture,
    experiment,
    heldout,
    meta_train,
    portrait,
    prune_channels,
    prune_mask,
    prune_race,
    prune_train,
    race,
    train_editor,
    train_mask,
    train_timm,
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
    "adapt_folder",
    "bench_optimizers",
    "compare",
    "constant_mixture",
    "experiment",
    "heldout",
    "job",
    "load_recipe",
    "meta_train",
    "portrait",
    "prune_channels",
    "prune_mask",
    "prune_race",
    "prune_train",
    "race",
    "recipe_faults",
    "run_recipe",
    "train_editor",
    "train_mask",
    "train_timm",
]
