"""The learned mask: a network over weights and gradients that ranks weights and shares out what is kept."""

from nfopt.pruning.neural.compromise import compromise
from nfopt.pruning.neural.look_ahead import look_ahead
from nfopt.pruning.neural.mask_inputs import FEATURES, TENSOR_INPUTS, MaskInputs, read_model
from nfopt.pruning.neural.mask_network import (
    MaskNetwork,
    MaskNetworkConfig,
    MaskProposal,
    network_checkpoint,
    read_network,
    weighed,
)
from nfopt.pruning.neural.neural_score import neural_score, neural_scores, propose, scores_of

__all__ = [
    "FEATURES",
    "TENSOR_INPUTS",
    "MaskInputs",
    "MaskNetwork",
    "MaskNetworkConfig",
    "MaskProposal",
    "compromise",
    "look_ahead",
    "network_checkpoint",
    "neural_score",
    "neural_scores",
    "propose",
    "read_model",
    "read_network",
    "scores_of",
    "weighed",
]
