"""Scores that need no data: chance, and the size of the weights."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nfopt.pruning.scores.score import ScoreContext, score


@score("random")
def random(context: ScoreContext) -> Mapping[str, Tensor]:
    """Uniform in [0, 1): what every other score must beat."""
    return {
        name: torch.rand(tuple(parameter.shape), generator=context.generator, dtype=torch.float64)
        for name, parameter in context.parameters.items()
    }


@score("magnitude")
def magnitude(context: ScoreContext) -> Mapping[str, Tensor]:
    """|w|, on trained weights or at initialisation.

    Ranked over all layers of an untrained net it empties the wide ones, whose weights begin smaller: the
    collapse that `prune` warns about. Source: Han et al. 2015 (arXiv:1506.02626), section 3.
    """
    return {name: parameter.detach().abs() for name, parameter in context.parameters.items()}
