"""Pruning scores: plug-ins that say what each weight is worth."""

# The scores enter themselves.
from nfopt.pruning.scores import datafree, gradient, imp, synflow
from nfopt.pruning.scores.score import (
    SCORES,
    Batch,
    LossFunction,
    Score,
    ScoreContext,
    TrainingFunction,
    check_batches,
    score,
)

__all__ = [
    "SCORES",
    "Batch",
    "LossFunction",
    "Score",
    "ScoreContext",
    "TrainingFunction",
    "check_batches",
    "datafree",
    "gradient",
    "imp",
    "score",
    "synflow",
]
