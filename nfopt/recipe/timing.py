"""Step times side by side: methods take turns in one process, so that a busy machine slows all alike."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch


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
