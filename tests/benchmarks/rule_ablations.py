"""What parts of the update rule are worth when it is meta-trained without them, and what more of it brings.

Every variant is meta-trained from the nominal point by `recipes/meta_train.yaml` with fewer tasks and smaller
outer steps (`SMALL`), all of one meta-seed on the same tasks and instances; its last Polyak average counts
and nothing is selected. Scores are log ratios of final validation losses, the variant over the nominal
optimizer, on trainings that are none of those: random ones of the family, and some of `meta_optimum.PANEL`,
whose nets are wider and whose trainings are longer. Below 0 is better. What is in the file of results is not
computed again.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from nfopt.meta.lesions import left_by, without_learned_part
from nfopt.meta.objective import Objective
from nfopt.meta.outer import OuterOptimizer
from nfopt.meta.rules import LearnedRules
from nfopt.meta.selection import longer_tasks
from nfopt.meta.task import Task, TaskConfig
from nfopt.meta.unroll import TruncatedUnroll
from nfopt.optim import RuleConfig
from nfopt.recipe import load_recipe
from nfopt.recipe.meta.meta_train import MetaTrainRecipe
from nfopt.seeds import derive_seed, generator
from nfopt.spread import paired, spread
from tests.benchmarks.meta_optimum import PANEL
from tests.benchmarks.rule_forms import FLOOR, RECIPES, Results

SMALL = (
    "slots=5",
    "instances=2",
    "family.kinds=[[mlp, 0.8], [cnn, 0.2]]",
    "family.horizon=[80, 240]",
    "variants.large.family.horizon=[80, 240]",
    "outer={outer_steps: 16, learning_rate: 0.015, final_learning_rate: 0.003, pull: 0.01, averaging: 0.9}",
    "estimator.max_norm=1.0",
    "estimator.fade=true",
    "estimator.segment=null",
)
LARGER = ("silhouettes, 500", "few, 500", "CNN, silhouettes, 400")
LINEAR = ("no hidden layer", "no row and column gains")
READS_NOTHING = (
    "blind to the clock",
    "blind to gradients",
    "blind to the weights' scale",
    "blind to the layer's place",
)
LESIONED = {
    "whole": (),
    "constants for matrices and others": (*LINEAR, *READS_NOTHING),
    "linear in the tensor's features": LINEAR,
    "no tokens": ("no tokens",),
    "no row and column gains": ("no row and column gains",),
    "no step control": ("no step control",),
    "no momentum control": ("no momentum control",),
    "no decay control": ("no decay control",),
} | {name: (name,) for name in READS_NOTHING}


@dataclass(frozen=True)
class Group:
    """Variants that are meta-trained side by side, as one program.

    Attributes:
        config: the rule's.
        lesions: by variant, the parts that it does not learn.
    """

    config: RuleConfig
    lesions: dict[str, tuple[str, ...]]


GROUPS = {
    "lesions": Group(RuleConfig(), LESIONED),
    "alone": Group(RuleConfig(couple=False), {"tensors that do not hear of each other": ()}),
    "hidden 16": Group(RuleConfig(hidden=16), {"hidden width 16": ()}),
    "hidden 64": Group(RuleConfig(hidden=64), {"hidden width 64": ()}),
}


def meta_train(group: Group, seed: int) -> list[list[float]]:
    """Return the weights that each variant of a group has learned."""
    recipe = load_recipe(RECIPES / "meta_train.yaml", [*SMALL, f"seed={seed}"]).recipe
    assert isinstance(recipe, MetaTrainRecipe)
    rules = LearnedRules(group.config)
    nominal, layout = rules.init_theta(seed)
    estimator, family = recipe.estimator.build(), recipe.tasks()
    outers = []
    for lesions in group.lesions.values():
        left = left_by(lesions, layout)
        outers.append(OuterOptimizer(recipe.outer, nominal * left, layout.zero_tensors(nominal), left))
    for step in range(recipe.outer.outer_steps):
        gradients = torch.zeros(len(outers), len(nominal))
        for slot in range(recipe.slots):
            task = Task.make(family.sample(generator(seed, "slot", slot, "episode", step, "task")))
            seeds = [derive_seed(seed, "slot", slot, "episode", step, i) for i in range(recipe.instances)]
            unroll = TruncatedUnroll(task, rules(task), layout, seeds * len(outers), recipe.objective)
            thetas = torch.cat([outer.theta.expand(recipe.instances, -1) for outer in outers])
            draw = generator(seed, "unused")
            found = estimator.step(unroll, thetas, estimator.begin(unroll, nominal), draw)[0]
            gradients += found.gradients.unflatten(0, (len(outers), -1)).mean(1) / recipe.slots
        for outer, gradient in zip(outers, gradients, strict=True):
            outer.step(gradient, step)
    return [outer.average.tolist() for outer in outers]


def score(group: Group, task: TaskConfig, seeds: Sequence[int], thetas: list[list[float]]) -> list[float]:
    """Return for every variant the mean log ratio of its final validation loss to the nominal one's."""
    rules = LearnedRules(group.config)
    nominal, layout = rules.init_theta(0)
    zeroed = layout.flatten(without_learned_part(layout.unflatten(nominal)))
    built = Task.make(task)
    unroll = TruncatedUnroll(built, rules(built), layout, seeds, Objective(every=task.horizon))
    every = [zeroed, *map(torch.tensor, thetas)]
    copies = torch.cat([theta.expand(len(seeds), -1) for theta in every])
    last: Tensor = unroll.run(copies, unroll.start().repeated(len(every)), unroll.horizon).curve[-1]
    logs = (last + FLOOR).log().unflatten(0, (len(every), -1)).nan_to_num(math.log(10.0), math.log(10.0))
    return (logs[1:] - logs[0]).mean(1).tolist()


def rows(meta_seeds: Sequence[int], tasks: Sequence[TaskConfig], results: Results) -> Iterator[str]:
    """Meta-train and score what is missing, and yield the table, in Markdown."""
    titles = ["variant", "weights", f"{len(tasks)} random, by meta-seed", "random", "- whole", *LARGER]
    yield f"| {' | '.join(titles)} |"
    yield "| --- " * len(titles) + "|"
    whole: list[float] = []
    for key, group in GROUPS.items():
        found: list[list[list[float]]] = []  # by meta-seed, task and variant
        for seed in meta_seeds:
            thetas = results.once(f"{key}, {seed}: weights", lambda g=group, s=seed: meta_train(g, s))
            named = [(f"random {i}", task, (0,)) for i, task in enumerate(tasks)]
            named += [(name, PANEL[name].task, PANEL[name].seeds) for name in LARGER]
            found.append(
                [
                    results.once(
                        f"{key}, {seed}: {name}",
                        lambda g=group, t=task, s=seeds, w=thetas: score(g, t, s, w),
                    )
                    for name, task, seeds in named
                ]
            )
        layout = LearnedRules(group.config).init_theta(0)[1]
        for index, (variant, lesions) in enumerate(group.lesions.items()):
            mine = [[task[index] for task in by_task] for by_task in found]
            random = [fmean(pair) for pair in zip(*(each[: len(tasks)] for each in mine), strict=True)]
            whole = whole or random
            larger = [spread([each[len(tasks) + i] for each in mine]) for i in range(len(LARGER))]
            cells = [
                variant,
                "" if lesions else f"{layout.length:,}",
                " ".join(f"{fmean(each[: len(tasks)]):+.3f}" for each in mine),
                f"{spread(random):+.3f}",
                "" if variant == "whole" else f"{paired(random, whole):+.3f}",
                *(f"{each:+.3f}" for each in larger),
            ]
            yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--meta-seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--tasks", type=int, default=48, help="random trainings to score on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    family = load_recipe(RECIPES / "meta_train.yaml", list(SMALL)).recipe.tasks()  # pyright: ignore
    tasks = longer_tasks(family, options.tasks, 1_000, horizon_factor=1)
    print("\n".join(rows(options.meta_seeds, tasks, Results(options.results))))


if __name__ == "__main__":
    main()
