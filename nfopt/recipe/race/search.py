"""How a method is tuned: which settings to try next, given the losses that are known, until one is chosen.

`product` tries every combination. `coordinate` goes through the options in the order of `tune`: it tries
every value of the first with the other options at their defaults, keeps the best, then every value of the
second, and so on, so that the count grows with the sum of the grids and not with their product. Either count
is known beforehand and the same whatever the losses are.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from nfopt.recipe.optimizers import OptimizerOptions

SearchName = Literal["product", "coordinate"]
Score = Callable[[OptimizerOptions], float | None]


@dataclass(frozen=True)
class Search:
    """Where a search stands.

    Attributes:
        wanted: settings whose loss must be known before it goes on; empty when it is over.
        chosen: the best setting; None until the search is over.
        tried: the settings looked at so far with their losses, each once; infinity for one that diverged.
    """

    wanted: tuple[OptimizerOptions, ...]
    chosen: OptimizerOptions | None
    tried: tuple[tuple[OptimizerOptions, float], ...] = ()


def candidate_count(options: OptimizerOptions, search: SearchName) -> int:
    """Return how many settings a search tries; 0 where there is nothing to tune."""
    if not options.tune:
        return 0
    if search == "product":
        return len({candidate.model_dump_json() for candidate in options.candidates()})
    first, *others = options.tune
    counts = [len(_distinct(options.tune[first]))]
    counts += [len(_distinct(options.tune[key], but=getattr(options, key))) for key in others]
    return sum(counts)


def _distinct(values: tuple[JsonValue, ...], *, but: JsonValue = None) -> list[JsonValue]:
    found: list[JsonValue] = []
    for value in values:
        if value not in found and (but is None or value != but):
            found.append(value)
    return found


def look(options: OptimizerOptions, search: SearchName, score: Score) -> Search:
    """Return where the search over `options.tune` stands.

    Args:
        options: the method with its grids and, as defaults, its other options.
        search: "product" or "coordinate".
        score: returns the loss of a setting, infinity if it diverged, None if it is not known yet. Of equal
            losses the setting that is tried first wins.
    """
    best = options.varied()
    if not options.tune:
        return Search((), best)
    known: list[tuple[OptimizerOptions, float]] = []
    stages = [tuple(options.tune)] if search == "product" else [(key,) for key in options.tune]
    for index, keys in enumerate(stages):
        within = options if search == "product" else best.model_copy(update={"tune": _only(options, keys)})
        candidates = within.candidates()
        unknown = []
        for candidate in candidates:
            loss = score(candidate)
            if loss is None:
                unknown += [candidate] if candidate not in unknown else []
            elif candidate not in [tried for tried, _ in known]:
                known.append((candidate, loss))
        if unknown:
            return Search(tuple(unknown), None, tuple(known))
        contenders = [entry for entry in known if entry[0] in candidates or (index > 0 and entry[0] == best)]
        best = min(contenders, key=lambda entry: entry[1])[0]
    return Search((), best, tuple(known))


def _only(options: OptimizerOptions, keys: tuple[str, ...]) -> dict[str, tuple[JsonValue, ...]]:
    return {key: options.tune[key] for key in keys}


def mean_or_infinity(losses: list[float | None]) -> float:
    """Return the mean of the losses over seeds; infinity if a seed diverged (None)."""
    finite = [loss for loss in losses if loss is not None]
    return sum(finite) / len(finite) if len(finite) == len(losses) else math.inf
