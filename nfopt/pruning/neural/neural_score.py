"""The score `nf`: SynFlow through magnitudes that a network has weighed, with shares that it has set."""

import copy
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from nfopt.pruning.mask import prunable_parameters
from nfopt.pruning.neural.compromise import compromise, is_convolutional
from nfopt.pruning.neural.mask_inputs import MaskInputs, read_model
from nfopt.pruning.neural.mask_network import MaskNetwork, MaskProposal, read_network
from nfopt.pruning.scores.score import Score, ScoreContext, score
from nfopt.pruning.scores.synflow import made_absolute, synaptic_flow
from nfopt.pruning.select import select

BUNDLED = "mask"
_NO_FLOW = -1e4


@score("nf", needs=("batches",), traces=True)
def nf(context: ScoreContext) -> Mapping[str, Tensor]:
    """The learned mask: `neural_scores` with nfopt's own network, mixed on convolutional nets."""
    return neural_scores(context, _bundled(), mixed=True)


@lru_cache(maxsize=1)
def _bundled() -> MaskNetwork:
    return read_network(BUNDLED)


def neural_score(
    network: MaskNetwork, *, ranking: bool = True, allocation: bool = True, mixed: bool = False
) -> Score:
    """Return the score of a network of one's own, or of one of its heads alone (an ablation)."""

    def compute(context: ScoreContext) -> Mapping[str, Tensor]:
        return neural_scores(context, network, ranking=ranking, allocation=allocation, mixed=mixed)

    return Score("nf", compute, needs=frozenset({"batches"}), traces=True)


def neural_scores(
    context: ScoreContext,
    network: MaskNetwork,
    *,
    ranking: bool = True,
    allocation: bool = True,
    mixed: bool = False,
) -> dict[str, Tensor]:
    """Return the worth of every weight: the round in which it falls, and within a round its flow.

    With the network's r per weight and a per tensor, and R the sum of the outputs on an input of ones of the
    model with M = |w| exp(r) for w, each round scores what is left by log(dR/dM M) + a and prunes, over
    all tensors together, down the densities d^(1/n), ..., d. With r = a = 0 this is SynFlow. A factor on a
    whole tensor changes no ranking of the flow, so r ranks within tensors and a shares out between them.

    Args:
        context: the model, its batches, and the density that is aimed at; without one there is one round,
            whose worth is exp(log flow + a).
        network: says r and a.
        ranking: False sets r to zero.
        allocation: False sets a to zero.
        mixed: True returns the `compromise` of that with the magnitudes after the look ahead and ERK, if most
            of what is scored are kernels and a density is aimed at.

    Raises:
        PruningError: the batches lead to values that are no finite numbers.
    """
    config = network.config
    inputs = read_model(context, look_ahead_steps=config.look_ahead_steps, look_ahead_lr=config.look_ahead_lr)
    flow = scores_of(context, propose(network, inputs, ranking, allocation), config.rounds)
    if not mixed or context.density is None or not is_convolutional(context.parameters):
        return flow
    return compromise({name: values.abs() for name, values in inputs.ahead.items()}, flow)


def propose(
    network: MaskNetwork, inputs: MaskInputs, ranking: bool = True, allocation: bool = True
) -> MaskProposal:
    """Return what a network says, a head that is off saying nothing."""
    network = network.to(inputs.tensors.device)
    with torch.no_grad():
        said = network(inputs)
    return MaskProposal(
        {name: r if ranking else torch.zeros_like(r) for name, r in said.ranking.items()},
        {name: a if allocation else torch.zeros_like(a) for name, a in said.allocation.items()},
    )


def scores_of(context: ScoreContext, proposal: MaskProposal, rounds: int) -> dict[str, Tensor]:
    """Return the worth of every weight under a proposal; the end of `neural_scores`."""
    flow = FlowRounds(context, proposal)
    kept = {name: mask.to(flow.device) for name, mask in context.kept.items()}
    if context.density is None:
        return {name: logs.exp() for name, logs in flow.log_worth(kept).items()}
    worth = {name: torch.zeros(m.shape, dtype=torch.float64, device=m.device) for name, m in kept.items()}
    for done in range(rounds):
        logs = flow.log_worth(kept)
        ranked = {name: v.masked_fill(~kept[name], float("-inf")) for name, v in logs.items()}
        chosen = select(ranked, context.density ** ((done + 1) / rounds))
        for name, mask in kept.items():
            # Between 0 and 1 in the order of the logarithms, so that a later round always counts for more.
            within = torch.atan(logs[name] / 20) / torch.pi + 0.5
            worth[name] = torch.where(mask, done + within, worth[name])
            kept[name] = mask & chosen[name]
    return worth


class FlowRounds:
    """The flow through a model's weighed magnitudes, again and again under sparser masks."""

    def __init__(self, context: ScoreContext, proposal: MaskProposal) -> None:
        self._model = made_absolute(copy.deepcopy(context.model))
        parameters = prunable_parameters(self._model)
        self._parameters = {name: parameters[name] for name in context.parameters}
        self._magnitudes = {
            name: p.detach() * proposal.ranking[name].to(p).exp() for name, p in self._parameters.items()
        }
        self._allocation = proposal.allocation
        self._example = context.example_inputs
        self.device = next(iter(self._parameters.values())).device

    def log_worth(self, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return log flow plus allocation of every element, finite also where nothing flows."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self._magnitudes[name] * kept[name])
        found = synaptic_flow(self._model, self._parameters, self._example)
        # A LayerNorm can make a flow negative: such weights come last, in SynFlow's order.
        return {
            name: torch.where(v > 0, v.log(), _NO_FLOW - (-v).clamp(min=0).log1p())
            + self._allocation[name].to(v)
            for name, v in found.items()
        }
