"""Step times side by side: methods take turns in one process, so that a busy machine slows all alike."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
from torch import nn
from torch.nn import functional

from nfopt.data import ImageData
from nfopt.recipe.optimizers import OptimizerOptions

TIMED_ROUNDS, TIMED_REPEATS = 11, 5
NO_UPDATE = "forward+backward"


def interleaved_seconds(
    actions: Mapping[str, Callable[[], None]], *, rounds: int, repeats: int = 5, device: torch.device
) -> dict[str, float]:
    """Return the median seconds of each action over `rounds`, in each of which every action has a turn.

    Args:
        actions: what to time, by name.
        rounds: turns of each action that count; one more before them does not.
        repeats: runs of the action in a turn, so that what its predecessor left in the caches matters little.
        device: waited for before and after each turn.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    names = list(actions)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            _wait(device)
            start = time.perf_counter()
            for _ in range(repeats):
                actions[name]()
            _wait(device)
            if turn > 0:
                seconds[name].append((time.perf_counter() - start) / repeats)
    return {name: median(values) for name, values in seconds.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step_seconds(
    methods: Mapping[str, OptimizerOptions],
    new_model: Callable[[], nn.Module],
    data: ImageData,
    *,
    batch_size: int,
    total_steps: int,
    device: torch.device,
) -> dict[str, float]:
    """Return the median seconds of forward, backward and update on one batch, by method.

    Args:
        methods: what to time, by key.
        new_model: makes the model, each time the same one.
        data: its first training images are the batch.
        batch_size: images per step.
        total_steps: length of the trainings; no more steps are taken, which an optimizer with a schedule of
            its own would warn about.
        device: where it runs.

    Returns:
        Seconds by key, and those of forward and backward alone as `NO_UPDATE`.
    """
    split = data.train.to(device)
    images, labels = split.images[:batch_size], split.labels[:batch_size]

    def stepper(options: OptimizerOptions | None) -> Callable[[], None]:
        model = new_model().to(device).train()
        optimizer = None if options is None else options.build(model, (images[:2],), total_steps).optimizer

        def step() -> None:
            model.zero_grad()
            functional.cross_entropy(model(images), labels).backward()
            if optimizer is not None:
                optimizer.step()

        return step

    actions = {key: stepper(options) for key, options in methods.items()} | {NO_UPDATE: stepper(None)}
    repeats = max(min(TIMED_REPEATS, total_steps // (TIMED_ROUNDS + 1)), 1)
    rounds = max(min(TIMED_ROUNDS, total_steps // repeats - 1), 1)
    return interleaved_seconds(actions, rounds=rounds, repeats=repeats, device=device)
