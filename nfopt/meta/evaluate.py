"""A fair comparison of update rules on held-out tasks: equal budgets, tuning on validation loss, seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from nfopt.data import Split
from nfopt.errors import NfoptError
from nfopt.meta.objective import Objective
from nfopt.meta.slot import RuleFactory
from nfopt.meta.task import Task, TaskConfig, Tensors
from nfopt.meta.theta import ThetaLayout
from nfopt.meta.unroll import TruncatedUnroll
from nfopt.seeds import derive_seed

Piece = Callable[[str, Callable[[], Any]], Any]
PROBE_IMAGES = 2000


@dataclass(frozen=True, eq=False)
class Method:
    """An update rule with the settings to choose from.

    Attributes:
        name: what the report calls it.
        rules: builds the rule for a task.
        layout: how a candidate splits into the rule's tensors.
        candidates: (candidates, length); one candidate needs no tuning.
        labels: what each candidate is, as JSON values.
    """

    name: str
    rules: RuleFactory
    layout: ThetaLayout
    candidates: Tensor
    labels: tuple[Mapping[str, Any], ...]

    def __post_init__(self) -> None:
        if len(self.candidates) != len(self.labels) or not self.labels:
            raise NfoptError(
                f"method {self.name!r} has {len(self.candidates)} candidates and {len(self.labels)} labels."
            )


@dataclass(frozen=True, slots=True)
class Comparison:
    """How methods are compared.

    Attributes:
        tuning_seeds: instances on which a method's candidates are compared.
        seeds: other instances, on which the chosen candidate is reported.
        every: inner steps between evaluations of the validation loss.
        copies: most copies that train side by side; bounds the memory.
        target: the method whose final validation loss the others are timed to.
        baseline: the method that every other is paired with, instance by instance.
        seed: the root of all instances' seeds.
    """

    tuning_seeds: int = 1
    seeds: int = 5
    every: int = 10
    copies: int = 16
    target: str = "adamw"
    baseline: str = "nominal"
    seed: int = 0


def compare(
    task_name: str,
    config: TaskConfig,
    methods: Sequence[Method],
    comparison: Comparison,
    piece: Piece = lambda name, compute: compute(),
) -> dict[str, Any]:
    """Compare `methods` on one task.

    Args:
        task_name: part of the pieces' names.
        config: the task; every method trains for its horizon on the same instances.
        methods: what to compare; `comparison.target` and `comparison.baseline` must be among them.
        comparison: seeds and budgets.
        piece: keeps finished parts: called with a name and the function that computes the part.

    Returns:
        JSON values: for each method its chosen setting, final losses and accuracy per seed with mean and
        standard error, and the steps to the target's mean final validation loss. A loss that is not finite is
        None, and counted in `diverged`; its mean is None then too.

    Raises:
        NfoptError: the target or the baseline is not among the methods.
    """
    names = [method.name for method in methods]
    for needed in (comparison.target, comparison.baseline):
        if needed not in names:
            raise NfoptError(f"the comparison needs the method {needed!r}; it has {', '.join(names)}.")
    task = Task.make(config)
    results = {}
    for method in methods:
        chosen = 0
        if len(method.labels) > 1:
            tuned = piece(f"{task_name}-{method.name}-tune", lambda m=method: _tune(task, m, comparison))
            chosen = tuned["chosen"]
        results[method.name] = piece(
            f"{task_name}-{method.name}-final", lambda m=method, c=chosen: _final(task, m, c, comparison)
        )
    return summarise(results, config.horizon, comparison)


def _tune(task: Task, method: Method, comparison: Comparison) -> dict[str, Any]:
    """Train every candidate on the tuning seeds; choose by mean final validation loss."""
    seeds = [derive_seed(comparison.seed, "tune", i) for i in range(comparison.tuning_seeds)]
    finals = []
    per_chunk = max(1, comparison.copies // len(seeds))
    for candidates in method.candidates.split(per_chunk):
        _, curve, _ = _train(task, method, candidates, seeds, comparison.every)
        finals.append(curve[-1].reshape(len(candidates), len(seeds)).mean(1))
    loss = torch.cat(finals)
    loss = torch.where(torch.isfinite(loss), loss, torch.full_like(loss, torch.inf))
    chosen = int(loss.argmin())
    return {"chosen": chosen, "validation_loss": [_number(v) for v in loss.tolist()]}


def _final(task: Task, method: Method, chosen: int, comparison: Comparison) -> dict[str, Any]:
    """Train the chosen candidate on the reporting seeds and measure it everywhere."""
    seeds = [derive_seed(comparison.seed, "report", i) for i in range(comparison.seeds)]
    rows: dict[str, list[Any]] = {key: [] for key in ("train", "validation", "test", "accuracy", "curve")}
    for start in range(0, len(seeds), comparison.copies):
        some = seeds[start : start + comparison.copies]
        params, curve, unroll = _train(task, method, method.candidates[[chosen]], some, comparison.every)
        train, _ = _measure(task, unroll, params, *_train_probe(task, unroll))
        test, accuracy = _measure(task, unroll, params, *_test_images(task.source.test, task, len(some)))
        rows["train"] += [_number(v) for v in train.tolist()]
        rows["test"] += [_number(v) for v in test.tolist()]
        rows["accuracy"] += accuracy.tolist()
        rows["validation"] += [_number(v) for v in curve[-1].tolist()]
        rows["curve"] += [[_number(v) for v in copy] for copy in curve.T.tolist()]
    return {
        "setting": dict(method.labels[chosen]),
        "at_edge": _edges(method, chosen),
        "candidates": len(method.labels),
        **rows,
    }


def _train(
    task: Task, method: Method, candidates: Tensor, seeds: Sequence[int], every: int
) -> tuple[Tensors, Tensor, TruncatedUnroll]:
    """Train every candidate on every seed; copy c x seeds + s is candidate c on seed s."""
    objective = Objective(every=every)
    unroll = TruncatedUnroll(task, method.rules(task), method.layout, seeds, objective)
    theta = candidates.repeat_interleave(len(seeds), 0)
    ran = unroll.run(theta, unroll.start().repeated(len(candidates)), unroll.horizon)
    return ran.state.params, ran.curve, unroll


def _train_probe(task: Task, unroll: TruncatedUnroll) -> tuple[Tensor, Tensor]:
    count = min(PROBE_IMAGES, task.config.train_images)
    positions = torch.arange(count).expand(unroll.instance_count, -1)
    return task.train_batch(unroll.instances, positions)


def _test_images(pool: Split, task: Task, copies: int) -> tuple[Tensor, Tensor]:
    images = pool.images[:PROBE_IMAGES].to(task.dtype)
    labels = pool.labels[:PROBE_IMAGES]
    return images.expand(copies, *images.shape), labels.expand(copies, -1)


def _measure(
    task: Task, unroll: TruncatedUnroll, params: Tensors, images: Tensor, labels: Tensor, batch: int = 500
) -> tuple[Tensor, Tensor]:
    """Return mean loss and accuracy of each copy, in batches (BatchNorm reads each batch's statistics)."""
    losses, hits = [], []
    with torch.no_grad():
        for x, y in zip(images.split(batch, 1), labels.split(batch, 1), strict=True):
            logits = vmap(task.logits)(params, unroll.instances.divisor, x)
            losses.append(F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view_as(y))
            hits.append((logits.argmax(-1) == y).double())
    return torch.cat(losses, 1).mean(1), torch.cat(hits, 1).mean(1)


def _number(value: float) -> float | None:
    return value if isfinite(value) else None


def _edges(method: Method, chosen: int) -> list[str]:
    """Return the numeric settings whose chosen value is the grid's smallest or largest of three or more."""
    found = []
    for key, value in method.labels[chosen].items():
        values = sorted({label[key] for label in method.labels if isinstance(label[key], int | float)})
        if len(values) >= 3 and value in (values[0], values[-1]) and value != 0:
            found.append(key)
    return found


def summarise(
    results: Mapping[str, Mapping[str, Any]], horizon: int, comparison: Comparison
) -> dict[str, Any]:
    """Add means, standard errors, steps to the target and paired differences to the methods' rows."""
    target = mean_and_error(results[comparison.target]["validation"])["mean"]
    summary: dict[str, Any] = {"horizon": horizon, "target_loss": target, "methods": {}}
    for name, rows in results.items():
        entry: dict[str, Any] = {"setting": rows["setting"], "at_edge": rows["at_edge"]}
        entry["candidates"] = rows["candidates"]
        for key in ("train", "validation", "test", "accuracy"):
            entry[key] = {"values": rows[key], **mean_and_error(rows[key])}
        entry["diverged"] = sum(value is None for value in rows["validation"])
        steps = [steps_to(curve, target, horizon, comparison.every) for curve in rows["curve"]]
        entry["steps_to_target"] = {"values": steps, **mean_and_error(steps)}
        for key in ("validation", "test"):
            paired = zip(rows[key], results[comparison.baseline][key], strict=True)
            gaps = [None if None in pair else pair[0] - pair[1] for pair in paired]
            entry[f"{key}_minus_{comparison.baseline}"] = {"values": gaps, **mean_and_error(gaps)}
        summary["methods"][name] = entry
    return summary


def mean_and_error(values: Sequence[float | None]) -> dict[str, float | None]:
    """Return mean and standard error of the mean; None when a value is missing (or there is but one)."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return {"mean": None, "error": None}
    mean = sum(known) / len(known)
    if len(known) == 1:
        return {"mean": mean, "error": None}
    variance = sum((value - mean) ** 2 for value in known) / (len(known) - 1)
    return {"mean": mean, "error": (variance / len(known)) ** 0.5}


def steps_to(curve: Sequence[float | None], target: float | None, horizon: int, every: int) -> int | None:
    """Return the step of the first evaluation at or below `target`, or None when there is none."""
    if target is None:
        return None
    for index, value in enumerate(curve):
        if value is not None and value <= target:
            return min((index + 1) * every, horizon)
    return None
