"""Estimators of the meta-gradient at equal cost: how much of an estimate is signal, and does it point right?

    nice python -m tests.benchmarks.meta_estimators [--pairs 48] [--horizon 80] [--point nominal]

A few small tasks of the real family, theta fixed. Each estimator gives independent estimates of the gradient
of the mean meta-loss, each from one whole training per task. The reference is backpropagation through whole
trainings, averaged over more instances than any estimate sees; for the loss as it is, without smoothing, it
is exact but for the draw of instances.

- cost: one estimate, in inner steps of one copy; a differentiated step counts as many as it takes time.
- right: cosine between the mean of all estimates and the reference (its own noise lowers it: see `agree`).
- signs: share of the meta-parameters whose gradient has the reference's sign, by the mean of all estimates,
  among those in which the reference is beyond two standard errors: Adam sees signs, not the largest alone.
- cos 1, cos B: cosine with the reference of one estimate, and of as many as the budget B of inner steps buys.
- agree B: cosine between two independent estimates of budget B.

The last two are computed from the estimates' mean projection p on the reference, their mean square norm q and
the unbiased square s of their mean's norm: for n estimates, cos = p / sqrt(s + (q - s) / n) and
agree = s / (s + (q - s) / n).
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from nfopt.meta import ES, PES, Objective, Task, TaskConfig, TaskFamily, TruncatedBackprop, TruncatedUnroll
from nfopt.meta.estimator import GradientEstimator
from nfopt.meta.rules import LearnedRules
from nfopt.meta.theta import ThetaLayout
from nfopt.optim.rule_checkpoint import read_rule
from nfopt.recipe.timing import interleaved_seconds
from nfopt.seeds import derive_seed, generator

FAMILY = TaskFamily(
    sources=("digits", "teacher"),
    kinds=(("mlp", 1.0), ("cnn", 0.5)),
    widths=(8, 32),
    depths=(1, 2),
    batch_images=(16, 64),
    rescale_share=0.0,
)
LARGE = replace(FAMILY, sources=("teacher_large",), train_images=(20_000, 50_000), label_noise=(0.0,))
GROUP = 8  # instances side by side: the graph of a whole training has to fit into memory


@dataclass(frozen=True, eq=False)
class Setting:
    """What all estimators share."""

    tasks: list[Task]
    rules: LearnedRules
    layout: ThetaLayout
    theta: Tensor
    objective: Objective

    def unroll(self, task: Task, seeds: list[int]) -> TruncatedUnroll:
        return TruncatedUnroll(task, self.rules(task), self.layout, seeds, self.objective)


def setting(tasks: int, horizon: int, point: str, objective: Objective) -> Setting:
    """Draw the tasks; theta is the checkpoint `point`. At the nominal one, hidden layers have no effect."""
    config, weights, _ = read_rule(point)
    rules = LearnedRules(config)
    theta, layout = rules.init_theta(0)
    if weights:
        theta = layout.flatten(weights)
    families = [FAMILY, LARGE]
    drawn = [families[i % 2].sample(generator("task", i)) for i in range(tasks)]
    configs = [replace(config, horizon=horizon) for config in drawn]
    return Setting([Task.make(config) for config in configs], rules, layout, theta, objective)


def estimates(shared: Setting, estimator: GradientEstimator, count: int, key: str) -> tuple[Tensor, float]:
    """Return `count` independent estimates (count, meta-parameters), and the inner steps of one of them."""
    rows = torch.zeros(count, len(shared.theta))
    inner_steps = 0
    for index, task in enumerate(shared.tasks):
        for start in range(0, count, GROUP):
            group = range(start, min(start + GROUP, count))
            unroll = shared.unroll(task, [derive_seed(key, index, i) for i in group])
            draw = generator(key, index, start)
            carry = estimator.begin(unroll, shared.theta)
            while carry is not None:
                estimate, carry = estimator.step(unroll, shared.theta, carry, draw)
                rows[start : start + len(group)] += estimate.gradients / len(shared.tasks)
                inner_steps += estimate.inner_steps
    return rows, inner_steps / count


def backprop_factor(shared: Setting) -> float:
    """Return how many plain inner steps a differentiated one takes the time of."""
    unroll = shared.unroll(shared.tasks[0], list(range(16)))
    copies = shared.theta.expand(16, -1)
    estimator = TruncatedBackprop(10)
    carry = estimator.begin(unroll, shared.theta)
    actions: dict[str, Callable[[], object]] = {
        "plain": lambda: unroll.run(copies, carry.state, 10),
        "differentiated": lambda: estimator.step(unroll, shared.theta, carry, generator("factor")),
    }
    seconds = interleaved_seconds(
        {name: lambda a=action: (a(), None)[1] for name, action in actions.items()},
        rounds=4,
        repeats=1,
        device=torch.device("cpu"),
    )
    return seconds["differentiated"] / seconds["plain"]


def scores(rows: Tensor, truth: Tensor, cost: float, budget: float) -> dict[str, float]:
    """Return the table's cells of one estimator from its independent estimates and the reference's."""
    reference = truth.mean(0)
    clear = reference.abs() > 2 * truth.std(0) / len(truth) ** 0.5
    rows = rows.double()
    count = len(rows)
    unit = (reference / reference.norm()).double()
    projection = float((rows @ unit).mean())
    square = float(rows.square().sum(1).mean())
    signal = float((rows.sum(0).square().sum() - rows.square().sum()) / (count * (count - 1)))
    signal = max(signal, projection**2)  # the projection is part of the mean, and less noisy
    many = budget / cost
    noise = max(square - signal, 0.0)
    return {
        "right": float(cosine_similarity(rows.mean(0), unit, dim=0)),
        "signs": float((rows.mean(0)[clear].sign() == reference[clear].sign()).double().mean()),
        "one": projection / (signal + noise) ** 0.5,
        "budget": projection / (signal + noise / many) ** 0.5,
        "agree": signal / (signal + noise / many),
        "error": float((rows @ unit).std() / count**0.5 / max(abs(projection), 1e-30)),
    }


def candidates() -> dict[str, GradientEstimator]:
    """Return what is compared, by the name in the table."""
    return {
        **{f"ES, sigma {sigma:g}": ES(sigma) for sigma in (0.01, 0.03, 0.1, 0.3)},
        "ES, sigma 0.1, truncation 20": ES(0.1, 20),
        **{f"PES, sigma {sigma:g}, truncation 20": PES(sigma, 20) for sigma in (0.03, 0.1)},
        **{f"backprop, truncation {steps}": TruncatedBackprop(steps, 1e9) for steps in (5, 10, 20, 40)},
        "backprop, whole": TruncatedBackprop(None, 1e9),
    }


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=48, help="estimates per estimator")
    parser.add_argument("--reference", type=int, default=96, help="instances per task of the reference")
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--horizon", type=int, default=80)
    parser.add_argument("--budget", type=float, default=30_000, help="inner steps")
    parser.add_argument("--point", default="nominal", help="checkpoint: a bundled name or a file")
    parser.add_argument("--only", default="", help="part of the names of the estimators to run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shared = setting(options.tasks, options.horizon, options.point, Objective())
    for task in shared.tasks:
        print(describe(task.config), file=sys.stderr)
    factor = backprop_factor(shared)
    truth, _ = estimates(shared, TruncatedBackprop(None, 1e9), options.reference, "reference")
    halves = float(cosine_similarity(truth[::2].mean(0), truth[1::2].mean(0), dim=0))
    print(
        f"a differentiated step costs {factor:.1f} plain ones; halves of the reference: cosine {halves:.3f}\n"
    )
    print(
        f"| estimator | cost | right | signs | cos 1 "
        f"| cos {options.budget:g} | agree {options.budget:g} | error of p |"
    )
    print("|---" * 8 + "|")
    for name, estimator in candidates().items():
        if options.only not in name:
            continue
        differentiated = isinstance(estimator, TruncatedBackprop)
        rows, steps = estimates(shared, estimator, options.pairs, "estimate")
        cost = steps * (factor if differentiated else 1)
        cells = scores(rows, truth, cost, options.budget)
        print(
            f"| {name} | {cost:.0f} | {cells['right']:.2f} | {cells['signs']:.2f} "
            f"| {cells['one']:.3f} | {cells['budget']:.2f} | {cells['agree']:.2f} "
            f"| {100 * cells['error']:.0f} % |",
            flush=True,
        )


def describe(config: TaskConfig) -> str:
    """Return a task in one line."""
    net = config.architecture
    return (
        f"{net.kind} {net.widths} {net.norm} {net.activation} on {config.source}, "
        f"batch {config.batch_images}, {config.train_images} images, noise {config.label_noise}, "
        f"{config.horizon} steps"
    )


if __name__ == "__main__":
    main()
