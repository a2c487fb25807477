"""Channels that are really removed: choice, proof, surgery, and the plan as a value."""

from nfopt.pruning.channels.cost import Cost, cost_of, latencies
from nfopt.pruning.channels.plan import PruningPlan
from nfopt.pruning.channels.proof import RemovalProof, RemovalProver
from nfopt.pruning.channels.prune_channels import ChannelPruning, prune_channels
from nfopt.pruning.channels.worth import channel_worth

__all__ = [
    "ChannelPruning",
    "Cost",
    "PruningPlan",
    "RemovalProof",
    "RemovalProver",
    "channel_worth",
    "cost_of",
    "latencies",
    "prune_channels",
]
