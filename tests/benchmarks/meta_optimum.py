"""Is the bundled update rule at an optimum of a family of trainings, and what do nudges of it bring?

`gradient`: the exact meta-gradient at the bundled rule over random trainings of a recipe, two instances each.
In a long training it can explode and mislead, so one that is longer than 1 counts with the
square of its inverse length. At an optimum the mean over trainings is noise: 5 % of its entries further
than two standard errors from zero, and the means of two halves of the trainings at right angles.

`nudges`: log ratios of validation losses, the bundled rule with a change over the bundled rule, on trainings
that are like those of meta-training but none of them: averaged over 40 to 85 % of the steps, and at the end.

What is in the file of results is not computed again.
"""

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from nfopt.checkpoints import load_checkpoint
from nfopt.meta.backprop import TruncatedBackprop
from nfopt.meta.lesions import Lesion, Theta, without_learned_part
from nfopt.meta.nets import Architecture
from nfopt.meta.objective import Objective
from nfopt.meta.rules import LearnedRules
from nfopt.meta.task import Task, TaskConfig
from nfopt.meta.unroll import TruncatedUnroll
from nfopt.optim import RuleConfig
from nfopt.optim.controls import CONTROL_NAMES
from nfopt.recipe import load_recipe
from nfopt.seeds import derive_seed, generator
from nfopt.spread import spread
from tests.benchmarks.rule_forms import FLOOR, Results

SEED = 70
FEW = 8_000  # images up to which a training counts as one on few


def _mlp(side: int) -> Architecture:
    return Architecture("mlp", (128, 128), 10, (1, side, side))


CNN = Architecture("cnn", (16, 32, 64), 10, (1, 16, 16), norm="batch")


@dataclass(frozen=True)
class Panel:
    """Trainings of one kind.

    Attributes:
        task: the training.
        seeds: the seeds.
    """

    task: TaskConfig
    seeds: tuple[int, ...]


def _many(source: str, horizon: int, seeds: tuple[int, ...], noise: float = 0.0) -> Panel:
    return Panel(TaskConfig(_mlp(28), source, 128, 48_000, 2_000, label_noise=noise, horizon=horizon), seeds)


def _few(horizon: int, seeds: tuple[int, ...]) -> Panel:
    return Panel(TaskConfig(_mlp(28), "silhouettes", 128, 2_000, 2_000, horizon=horizon), seeds)


PANEL = {
    "silhouettes, 500": _many("silhouettes", 500, (21, 22, 23)),
    "clutter, 500": _many("mnist_cluttered", 500, (21, 22)),
    "noisy, 500": _many("silhouettes", 500, (21, 22), noise=0.2),
    "few, 500": _few(500, (21, 22, 23)),
    "few digits, 500": Panel(TaskConfig(_mlp(14), "mnist", 128, 1_000, 1_000, horizon=500), (21, 22, 23)),
    "CNN, silhouettes, 400": Panel(TaskConfig(CNN, "silhouettes", 64, 20_000, 1_000, horizon=400), (21, 22)),
    "CNN, clutter, 300": Panel(TaskConfig(CNN, "mnist_cluttered", 64, 20_000, 1_000, horizon=300), (21, 22)),
    "silhouettes, 2,000": _many("silhouettes", 2_000, (21,)),
    "clutter, 2,000": _many("mnist_cluttered", 2_000, (21,)),
    "noisy, 2,000": _many("silhouettes", 2_000, (21,), noise=0.2),
    "few, 2,000": _few(2_000, (21,)),
}


def bias(control: str, change: float) -> Lesion:
    """Return what adds a constant to a control's decision, before its tanh."""

    def added(theta: Mapping[str, Tensor]) -> Theta:
        changed = {name: value.clone() for name, value in theta.items()}
        changed["tensor_output_bias"][CONTROL_NAMES.index(control)] += change
        return changed

    return added


def scale(control: str, factor: float) -> Lesion:
    """Return what multiplies a control's decision, before its tanh."""

    def scaled(theta: Mapping[str, Tensor]) -> Theta:
        changed = {name: value.clone() for name, value in theta.items()}
        for name in ("tensor_output", "tensor_output_bias"):
            changed[name][CONTROL_NAMES.index(control)] *= factor
        return changed

    return scaled


def half_gains(theta: Mapping[str, Tensor]) -> Theta:
    """Rows and columns differ half as much."""
    return {**theta, "entry_output": 0.5 * theta["entry_output"]}


NUDGES: dict[str, Lesion] = {
    "log step + .1": bias("log_step", 0.1),
    "log step - .1": bias("log_step", -0.1),
    "momentum share x 1.3": scale("fast_share", 1.3),
    "momentum share x .5": scale("fast_share", 0.5),
    "log decay + .3": bias("log_decay", 0.3),
    "log decay x .6": scale("log_decay", 0.6),
    "log decay - .3": bias("log_decay", -0.3),
    "log decay - .6": bias("log_decay", -0.6),
    "gains x .5": half_gains,
    "nominal": without_learned_part,
}


def gradient(recipe: Path, overrides: list[str], count: int, results: Results) -> Iterator[str]:
    """Measure the meta-gradient over `count` trainings of a recipe and yield what it says."""
    family = load_recipe(recipe, ["start=default", *overrides]).recipe.tasks()  # pyright: ignore
    rules = LearnedRules(RuleConfig())
    _, layout = rules.init_theta(0)
    theta = layout.flatten(dict(load_checkpoint("default", kind="update-rule").theta))
    objective = Objective(every=25, final_share=0.5, floor=FLOOR, after=0.5)
    estimator = TruncatedBackprop(truncation=None, max_norm=1e9, segment=25)
    tasks = [family.sample(generator(SEED, "task", index)) for index in range(count)]

    def measure(index: int) -> list:
        task = Task.make(tasks[index])
        seeds = [derive_seed(SEED, "inst", index, k) for k in range(2)]
        unroll = TruncatedUnroll(task, rules(task), layout, seeds, objective)
        draw = generator(SEED, "x", index)
        return estimator.step(unroll, theta, estimator.begin(unroll, theta), draw)[0].gradients.tolist()

    every = [results.once(str(index), lambda index=index: measure(index)) for index in range(count)]
    gradients = torch.tensor(every)
    lengths = gradients.norm(dim=2)
    means = (gradients * lengths.clamp(min=1).pow(-2)[..., None]).mean(1)
    quantiles = [f"{q:.0%} {float(lengths.flatten().quantile(q)):.2f}" for q in (0.1, 0.5, 0.9)]
    yield f"Lengths of {lengths.numel()} gradients: {', '.join(quantiles)}."
    kinds = [_group(task) for task in tasks]
    groups = {name: means[[kind == name for kind in kinds]] for name in sorted(set(kinds))} | {"all": means}
    places = layout.unflatten(torch.arange(layout.length))["tensor_output_bias"].tolist()
    constants = [f"in the constant of {name.replace('_', ' ')}" for name in CONTROL_NAMES]
    yield f"| trainings | number | length | beyond 2 errors | halves' cosine | {' | '.join(constants)} |"
    yield "| --- " * (5 + len(constants)) + "|"
    for name, mine in groups.items():
        sure = mine.mean(0) / (mine.std(0) / len(mine) ** 0.5 + 1e-12)
        cells = [f"{float((sure.abs() > 2).float().mean()):.0%}", f"{_halves(mine):.2f}"]
        cells += [f"{spread(mine[:, place].tolist()):+.4f}" for place in places]
        yield f"| {name} | {len(mine)} | {float(mine.mean(0).norm()):.3f} | {' | '.join(cells)} |"
    for one, other in combinations(groups, 2):
        if "all" not in (one, other):
            cosine = torch.cosine_similarity(groups[one].mean(0), groups[other].mean(0), dim=0)
            yield f"Cosine of {one} and {other}: {float(cosine):.2f}."


def _group(task: TaskConfig) -> str:
    if task.architecture.kind != "mlp":
        return "convolutional"
    return "few images" if task.train_images <= FEW else "many images"


def _halves(gradients: Tensor) -> float:
    """Return the cosine between the means of two halves of the trainings, over 20 ways to halve them."""
    cosines, half = [], len(gradients) // 2
    for seed in range(20):
        order = torch.randperm(len(gradients), generator=generator(SEED, "halves", seed))
        means = [gradients[part].mean(0) for part in (order[:half], order[half:])]
        cosines.append(float(torch.cosine_similarity(*means, dim=0)))
    return fmean(cosines)


def nudges(only: str, results: Results) -> Iterator[str]:
    """Measure the nudges on the panel and yield the table, in Markdown."""
    rules = LearnedRules(RuleConfig())
    _, layout = rules.init_theta(0)
    bundled = dict(load_checkpoint("default", kind="update-rule").theta)
    thetas = [layout.flatten(theta) for theta in (bundled, *(nudge(bundled) for nudge in NUDGES.values()))]

    def measure(panel: Panel) -> list:
        task, count = Task.make(panel.task), len(panel.seeds)
        unroll = TruncatedUnroll(task, rules(task), layout, panel.seeds, Objective(every=25))
        copies = torch.cat([theta.expand(count, -1) for theta in thetas])
        curve = unroll.run(copies, unroll.start().repeated(len(thetas)), unroll.horizon).curve
        return curve.T.reshape(len(thetas), count, -1).tolist()

    found = {key: results.once(key, lambda p=p: measure(p)) for key, p in PANEL.items() if only in key}
    yield "| nudge | mean | " + " | ".join(found) + " |"
    yield "| --- " * (len(found) + 2) + "|"
    for index, name in enumerate(NUDGES, start=1):
        cells = [
            [fmean(pair) for pair in zip(*map(_ratio, runs[index], runs[0]), strict=True)]
            for runs in found.values()
        ]
        means = [fmean(cell) for cell in zip(*cells, strict=True)]
        yield f"| {name} | " + " | ".join(f"{a:+.3f} / {b:+.3f}" for a, b in (means, *cells)) + " |"


def _ratio(run: list[float], base: list[float]) -> tuple[float, float]:
    """Return the log ratio of two curves, averaged over 40 to 85 % of the steps, and at the end."""
    logs = [math.log((a + FLOOR) / (b + FLOOR)) for a, b in zip(run, base, strict=True)]
    return fmean(logs[round(0.4 * len(logs)) : round(0.85 * len(logs))]), logs[-1]


def main() -> None:
    """Measure what is missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("gradient", "nudges"))
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/meta_train_dense.yaml"))
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the recipe")
    parser.add_argument("--count", type=int, default=60, help="trainings")
    parser.add_argument("--only", default="", help="panels whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(options.results)
    if options.what == "gradient":
        lines = gradient(options.recipe, options.set, options.count, results)
    else:
        lines = nudges(options.only, results)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
