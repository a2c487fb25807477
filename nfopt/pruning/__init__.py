"""Pruning: masks as values, scores as plug-ins, and channels that are really removed."""

from nfopt.pruning.apply import applied_mask, apply_mask, remove_mask
from nfopt.pruning.channels import (
    ChannelPruning,
    Cost,
    PruningPlan,
    RemovalProof,
    RemovalProver,
    channel_worth,
    cost_of,
    latencies,
    prune_channels,
)
from nfopt.pruning.copies import CopiesConfig, CopyScore, MaskedCopies, score_copies, train_copies
from nfopt.pruning.keep import KeptMask, keep_masked
from nfopt.pruning.mask import MaskComparison, MaskRow, PruningMask
from nfopt.pruning.mask_plot import plot_masks
from nfopt.pruning.neural import MaskNetwork, MaskNetworkConfig, neural_score
from nfopt.pruning.prune import prune
from nfopt.pruning.schedule import GradualPruning, SparsitySchedule
from nfopt.pruning.scores import SCORES, Score, ScoreContext, score
from nfopt.pruning.select import SCOPES, erk_counts, select
from nfopt.pruning.targets import Targets, find_targets

__all__ = [
    "SCOPES",
    "SCORES",
    "ChannelPruning",
    "CopiesConfig",
    "CopyScore",
    "Cost",
    "GradualPruning",
    "KeptMask",
    "MaskComparison",
    "MaskNetwork",
    "MaskNetworkConfig",
    "MaskRow",
    "MaskedCopies",
    "PruningMask",
    "PruningPlan",
    "RemovalProof",
    "RemovalProver",
    "Score",
    "ScoreContext",
    "SparsitySchedule",
    "Targets",
    "applied_mask",
    "apply_mask",
    "channel_worth",
    "cost_of",
    "erk_counts",
    "find_targets",
    "keep_masked",
    "latencies",
    "neural_score",
    "plot_masks",
    "prune",
    "prune_channels",
    "remove_mask",
    "score",
    "score_copies",
    "select",
    "train_copies",
]
