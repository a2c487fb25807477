"""Which elements to keep: exact counts from scores, with ties broken by position, in one of four scopes."""

import re
from collections.abc import Callable, Mapping
from math import prod

import torch
from torch import Tensor

from nfopt.errors import PruningError, unknown_name
from nfopt.registry import Registry

Scores = Mapping[str, Tensor]
Scope = Callable[[Scores, float], dict[str, Tensor]]
SCOPES: Registry[Scope] = Registry("pruning scope")
HALVINGS = 200  # more than a double has digits
_N_TO_M = re.compile(r"(\d+):(\d+)")


def select(scores: Scores, density: float, scope: str = "global") -> dict[str, Tensor]:
    """Return for each tensor which of its elements are kept, those of the highest scores.

    Exactly `round(density * n)` elements are kept, n being the elements of all tensors together ("global",
    "erk"), of each tensor ("layer"), or M of every group ("N:M", in which density plays no part). Of equal
    scores the one that stands earlier is kept: in the order of `scores`, then row-major.

    Args:
        scores: for each tensor the worth of its elements; every element finite, or -inf for the last choice.
        density: kept fraction in [0, 1].
        scope: "global", "layer", "erk", or "N:M" such as "2:4": N kept of every M neighbours along the
            inputs of a neuron (dimension 1).

    Raises:
        PruningError: the density, a score or the scope is not of the said form.
    """
    check_density(density)
    check_scope(scope)
    for name, values in scores.items():
        if bool(values.isnan().any()) or bool((values == float("inf")).any()):
            raise PruningError(
                f"the scores of {name} are not all finite numbers. The gradients or weights that they were "
                "computed from overflow, or hold a not-a-number: check the model's weights and its batches."
            )
    match = _N_TO_M.fullmatch(scope)
    if match is not None:
        return n_of_m(scores, int(match[1]), int(match[2]))
    return SCOPES[scope](scores, density)


def check_density(density: float) -> None:
    """Raise PruningError unless `density` lies in [0, 1]."""
    if isinstance(density, str) or not 0 <= density <= 1:
        raise PruningError(
            f"density is the kept fraction, between 0 and 1, not {density!r}. To keep 5 %, give 0.05."
        )


def check_scope(scope: str) -> None:
    """Raise UnknownNameError or PruningError unless `scope` is one."""
    match = _N_TO_M.fullmatch(scope)
    if match is None:
        if scope not in SCOPES:
            raise unknown_name("pruning scope", scope, [*SCOPES, "2:4"])
    elif not 0 < int(match[1]) <= int(match[2]):
        raise PruningError(f"scope {scope!r} keeps N of every M: 1 <= N <= M, such as 2:4.")


def scope_density(scope: str) -> float | None:
    """Return the density that the scope N:M fixes; None for a scope that leaves it open."""
    match = _N_TO_M.fullmatch(scope)
    return None if match is None else int(match[1]) / int(match[2])


def top(scores: Tensor, count: int) -> Tensor:
    """Return a boolean tensor with exactly `count` elements True, the highest; the earlier one of equals."""
    order = torch.sort(scores.flatten(), descending=True, stable=True).indices[:count]
    chosen = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    chosen[order] = True
    return chosen.reshape(scores.shape)


@SCOPES.register("global")
def over_all_tensors(scores: Scores, density: float) -> dict[str, Tensor]:
    """Rank the elements of all tensors together."""
    if not scores:
        return {}
    everything = torch.cat([values.flatten().double() for values in scores.values()])
    chosen = top(everything, round(density * everything.numel()))
    parts = chosen.split([values.numel() for values in scores.values()])
    return {name: part.reshape(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


@SCOPES.register("layer")
def within_each_tensor(scores: Scores, density: float) -> dict[str, Tensor]:
    """Keep the same fraction of every tensor."""
    return {name: top(values, round(density * values.numel())) for name, values in scores.items()}


@SCOPES.register("erk")
def erdos_renyi_kernel(scores: Scores, density: float) -> dict[str, Tensor]:
    """Keep a fraction of each tensor that falls with its size, by `erk_counts`."""
    counts = erk_counts({name: tuple(values.shape) for name, values in scores.items()}, density)
    return {name: top(values, counts[name]) for name, values in scores.items()}


def erk_counts(shapes: Mapping[str, tuple[int, ...]], density: float) -> dict[str, int]:
    """Return how many elements of each tensor the Erdos-Renyi-Kernel rule keeps, `round(density * n)` in all.

    Each tensor's density is proportional to (sum of its dimensions) / (product of its dimensions), at most 1;
    what a full tensor cannot take goes to the others in proportion. One factor for all tensors, and counts
    rounded to the nearest: so that no count falls when the density rises. The earlier of equals is first.

    Source: Evci et al., "Rigging the Lottery" (arXiv:1911.11134), section 3 (1).
    """
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    budget = round(density * sum(sizes.values()))

    def counts(factor: float) -> dict[str, int]:
        return {name: min(size, int(factor * sum(shapes[name]) + 0.5)) for name, size in sizes.items()}

    low, high = 0.0, max([1.0, *(2.0 * size for size in sizes.values())])
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if sum(counts(middle).values()) <= budget:
            low = middle
        else:
            high = middle
    found, above = counts(low), counts(high)
    for name in found:
        missing = budget - sum(found.values())
        found[name] += min(missing, above[name] - found[name])
    return found


def n_of_m(scores: Scores, n: int, m: int) -> dict[str, Tensor]:
    """Keep the `n` highest of every `m` neighbours along dimension 1, the inputs of a neuron.

    Raises:
        PruningError: a tensor's inputs do not divide into groups of `m`; all such tensors are named.
    """
    misfits = [name for name, s in scores.items() if s.ndim < 2 or s.shape[1] % m != 0]
    if misfits:
        shown = ", ".join(f"{name} {list(scores[name].shape)}" for name in misfits)
        raise PruningError(
            f"{n}:{m} pruning needs inputs (dimension 1) in groups of {m}, which these do not have: {shown}. "
            "Leave them out with exclude=[...]."
        )
    kept = {}
    for name, values in scores.items():
        groups = values.movedim(1, -1).unflatten(-1, (-1, m))
        order = torch.sort(groups, dim=-1, descending=True, stable=True).indices[..., :n]
        chosen = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order, True)
        kept[name] = chosen.flatten(-2).movedim(-1, 1).contiguous()
    return kept
