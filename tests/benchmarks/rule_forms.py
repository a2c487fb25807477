"""What two forms of one piece of the nominal optimizer come to, under the bundled rule and the nominal one.

Validation loss at 85 % of the steps and at the end, on data that meta-training may use: MLPs 784-128-128-10
with batches of 128 over a pass or more of many images, with a fifth of the labels wrong, and over 2,000
images; and random tasks of meta-training, drawn with a seed of these benchmarks. Both forms train on the
same starts and batches. What is in the file of results is not computed again.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any
from unittest.mock import patch

import torch

from nfopt.checkpoints import load_checkpoint
from nfopt.meta.nets import Architecture
from nfopt.meta.objective import Objective
from nfopt.meta.rules import LearnedRules
from nfopt.meta.selection import longer_tasks
from nfopt.meta.task import Task, TaskConfig
from nfopt.meta.unroll import TruncatedUnroll
from nfopt.optim import RuleConfig
from nfopt.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
RANDOM = {"long": 24, "wide": 12}  # random tasks of recipes/meta_train_*.yaml
SEED = 31
RULES = ("bundled", "nominal")
FLOOR = 0.05  # added to losses before logarithms, as in meta-training


@dataclass(frozen=True)
class Forms:
    """Two forms of one piece.

    Attributes:
        target: where the rule looks the piece up, for `unittest.mock.patch`.
        before: the form that is compared with, and its name.
        after: the form that is built in.
    """

    target: str
    before: tuple[str, Callable[..., Any]]
    after: Callable[..., Any]

    @property
    def by_name(self) -> dict[str, Callable[..., Any]]:
        """Both, in order."""
        return {self.before[0]: self.before[1], "built in": self.after}


class Results:
    """A file of JSON lines [key, value]."""

    def __init__(self, file: Path) -> None:
        self._file = file
        lines = file.read_text().splitlines() if file.exists() else []
        self.values: dict[str, Any] = dict(map(json.loads, lines))

    def once(self, key: str, measure: Callable[[], Any]) -> Any:
        """Return what is there under `key`, or measure, keep and show it."""
        if key not in self.values:
            self.values[key] = measure()
            with self._file.open("a") as file:
                file.write(json.dumps([key, self.values[key]]) + "\n")
            print(key, flush=True)
        return self.values[key]


def fixed_tasks() -> Iterator[tuple[str, TaskConfig, tuple[int, ...]]]:
    """Yield names, tasks and seeds of the trainings that are the same in every version."""
    for horizon, seeds in ((500, (1, 2, 3)), (2_000, (1, 2))):
        for source in ("silhouettes", "mnist_cluttered"):
            for kind, images, noise in (("many", 48_000, 0.0), ("noisy", 48_000, 0.2), ("few", 2_000, 0.0)):
                if source == "silhouettes" or kind == "many":
                    net = Architecture("mlp", (128, 128), 10, (1, 28, 28))
                    task = TaskConfig(net, source, 128, images, 2_000, label_noise=noise, horizon=horizon)
                    yield f"{source}, {kind}, {horizon:,} steps", task, seeds


def random_tasks() -> Iterator[tuple[str, TaskConfig, tuple[int, ...]]]:
    """Yield names, tasks and seeds of the random trainings."""
    for family, count in RANDOM.items():
        recipe = load_recipe(RECIPES / f"meta_train_{family}.yaml", ["start=default"]).recipe
        for index, task in enumerate(longer_tasks(recipe.tasks(), count, SEED, 1)):  # pyright: ignore
            yield f"{family} {index}", task, (SEED,)


def measure(
    forms: Forms, task: TaskConfig, seeds: tuple[int, ...]
) -> dict[str, dict[str, list[list[float]]]]:
    """Return by form and rule, for each seed, the losses at 85 % and at the end."""
    rules = LearnedRules(RuleConfig())
    nominal, layout = rules.init_theta(0)
    bundled = layout.flatten(dict(load_checkpoint("default", kind="update-rule").theta))
    built = Task.make(task)
    found: dict[str, dict[str, list[list[float]]]] = {}
    for name, form in forms.by_name.items():
        unroll = TruncatedUnroll(built, rules(built), layout, seeds, Objective(every=10))
        copies = torch.cat([theta.expand(len(seeds), -1) for theta in (bundled, nominal)])
        with patch(forms.target, form):
            curve = unroll.run(copies, unroll.start().repeated(2), unroll.horizon).curve
        late = curve[[max(round(0.85 * len(curve)) - 1, 0), -1]].T.reshape(2, len(seeds), 2)
        found[name] = {rule: late[i].tolist() for i, rule in enumerate(RULES)}
    return found


def rows(forms: Forms, results: dict[str, dict]) -> Iterator[str]:
    """Yield the table, in Markdown."""
    before, after = forms.by_name
    yield f"| task | rule | {before}: 85 % | end | {after}: 85 % | end | log ratio at 85 % | at the end |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for name in [name for name, _, _ in fixed_tasks() if name in results]:
        for rule in RULES:
            pair = results[name][before][rule], results[name][after][rule]
            losses = [f"{fmean(run[k] for run in runs):.3f}" for runs in pair for k in (0, 1)]
            yield " | ".join((f"| {name}", rule, *losses, *_ratios([pair]))) + " |"
    for family in RANDOM:
        some = [found for name, found in results.items() if name.startswith(f"{family} ")]
        for rule in RULES if some else ():
            pairs = [(found[before][rule], found[after][rule]) for found in some]
            title = f"{len(some)} random tasks of meta_train_{family}"
            yield " | ".join((f"| {title}", rule, "", "", "", "", *_ratios(pairs))) + " |"


def _ratios(pairs: list) -> list[str]:
    """Return mean, standard error and the worst of the log ratios, at 85 % and at the end."""
    cells = []
    for k in (0, 1):
        logs = [
            math.log((b[k] + FLOOR) / (a[k] + FLOOR))
            for before, after in pairs
            for a, b in zip(before, after, strict=True)
        ]
        error = f" ± {stdev(logs) / math.sqrt(len(logs)):.3f}" if len(logs) > 1 else ""
        cells.append(f"{fmean(logs):+.3f}{error}, at worst {max(logs):+.3f}")
    return cells


def main(forms: Forms, description: str | None) -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--only", default="", help="tasks whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(options.results)
    for name, task, seeds in (*fixed_tasks(), *random_tasks()):
        if options.only in name:
            results.once(name, lambda task=task, seeds=seeds: measure(forms, task, seeds))
    table = "\n".join(rows(forms, results.values))
    print(table)
    if options.table:
        options.table.write_text(table + "\n")
