"""Pruning: masks as values, scores as plug-ins, and channels that are really removed."""

from nfopt.pruning.apply import applied_mask, apply_mask, remove_mask
from nfopt.pruning.keep import KeptMask, keep_masked
from nfopt.pruning.mask import MaskComparison, MaskRow, PruningMask
from nfopt.pruning.prune import prune
from nfopt.pruning.schedule import GradualPruning, SparsitySchedule
from nfopt.pruning.scores import SCORES, Score, ScoreContext, score
from nfopt.pruning.select import SCOPES, erk_counts, select
from nfopt.pruning.targets import Targets, find_targets

__all__ = [
    "SCOPES",
    "SCORES",
    "GradualPruning",
    "KeptMask",
    "MaskComparison",
    "MaskRow",
    "PruningMask",
    "Score",
    "ScoreContext",
    "SparsitySchedule",
    "Targets",
    "applied_mask",
    "apply_mask",
    "erk_counts",
    "find_targets",
    "keep_masked",
    "prune",
    "remove_mask",
    "score",
    "select",
]
