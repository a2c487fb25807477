"""What the mask network reads: weights, gradients, a look ahead and the flow, per element and per tensor."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.pruning.mask import prunable_parameters
from nfopt.pruning.neural.look_ahead import look_ahead
from nfopt.pruning.scores.score import ScoreContext
from nfopt.pruning.scores.synflow import made_absolute, synaptic_flow
from nfopt.symmetry import PermutationSpec
from nfopt.weightspace import FeatureBlocks, WeightSpaceFeatures

FEATURES = WeightSpaceFeatures(gradients=True, extras=("ahead", "growth", "flow"))
TENSOR_INPUTS = ("snip share", "ahead share", "erk", "numel", "depth", "first", "last")
_LEAST = 1e-30


@dataclass(frozen=True, eq=False)
class MaskInputs:
    """What is known of a model before its mask is made.

    Attributes:
        features: `FEATURES` of all parameters: weights W and gradients G at the start, weights after the
            look ahead, their growth sign(W) (ahead - W), and the synaptic flow through |W|. The logarithms of
            |W|, SNIP's |G W| (as a sum) and SynFlow's score are among them.
        names: the tensors that are scored.
        tensors: for each of them the channels `TENSOR_INPUTS`, each centred over the tensors: logarithms of
            the mean |G W| and of the mean magnitude ahead against the tensors' mean, the logarithm of the
            ERK density, that of the number of elements, depth, and whether it is the first or the last.
        ahead: the scored tensors after the look ahead.
    """

    features: FeatureBlocks
    names: tuple[str, ...]
    tensors: Float[Tensor, "tensors channels"]
    ahead: Mapping[str, Tensor]


def read_model(context: ScoreContext, *, look_ahead_steps: int, look_ahead_lr: float) -> MaskInputs:
    """Return the inputs of the mask network for the model of a context.

    Raises:
        PruningError: looking ahead, values become infinite or no numbers.
        FeatureError: weights or gradients are not finite.
    """
    # On a copy: batches move the running statistics of a model in training mode.
    model = copy.deepcopy(context.model)
    parameters = {n: p for n, p in prunable_parameters(model).items() if p.is_floating_point()}
    everything = replace(context, model=model, parameters=parameters)
    weights = {name: p.detach().float() for name, p in parameters.items()}
    gradients = {name: torch.zeros_like(p) for name, p in weights.items()}
    for batch in context.batches:
        for name, gradient in everything.gradients(batch).items():
            gradients[name] += gradient.float() / len(context.batches)
    ahead = {n: p.float() for n, p in look_ahead(context, look_ahead_steps, look_ahead_lr).items()}
    flow = _flow(context)
    spec = covering(context.spec, {name: tuple(p.shape) for name, p in weights.items()})
    extras = {
        "ahead": ahead,
        "growth": {name: (ahead[name] - w) * w.sign() for name, w in weights.items()},
        "flow": flow,
    }
    features = FEATURES(spec, weights, gradients, extras)
    names = tuple(context.parameters)
    tensors = _tensor_inputs(names, weights, gradients, ahead)
    return MaskInputs(features, names, tensors, {name: ahead[name] for name in names})


def covering(spec: PermutationSpec | None, shapes: Mapping[str, tuple[int, ...]]) -> PermutationSpec:
    """Return the part of `spec` about the named tensors; what it does not know of stands on its own."""
    given = PermutationSpec({}) if spec is None else spec
    known = {name: t for name, t in given.tensors.items() if shapes.get(name) == t.shape}
    loose = PermutationSpec.uncoupled({n: s for n, s in shapes.items() if n not in known}).tensors
    both = {name: known.get(name) or loose[name] for name in shapes}
    atoms = PermutationSpec(both).atoms
    return PermutationSpec(both, {name: why for name, why in given.fixed.items() if name in atoms})


def _flow(context: ScoreContext) -> dict[str, Tensor]:
    """Return the flow through each scored tensor, scaled to a largest value of 1."""
    model = made_absolute(copy.deepcopy(context.model))
    parameters = prunable_parameters(model)
    found = synaptic_flow(model, {n: parameters[n] for n in context.parameters}, context.example_inputs)
    return {name: (v / v.amax().clamp(min=_LEAST)).float() if v.numel() else v for name, v in found.items()}


def _tensor_inputs(
    names: tuple[str, ...],
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    ahead: Mapping[str, Tensor],
) -> Float[Tensor, "tensors channels"]:
    last = max(len(names) - 1, 1)
    rows = []
    for place, name in enumerate(names):
        shape, count = weights[name].shape, max(weights[name].numel(), 1)
        rows.append(
            [
                _log_mean(weights[name] * gradients[name]) / 2,
                _log_mean(ahead[name]),
                log(max(sum(shape), 1) / count),
                log(count) / 4,
                2 * place / last - 1,
                float(place == 0),
                float(place == last),
            ]
        )
    table = torch.tensor(rows, dtype=torch.float32, device=weights[names[0]].device)
    return table - table.mean(0)


def _log_mean(values: Tensor) -> float:
    return log(max(float(values.abs().double().mean()), _LEAST)) if values.numel() else 0.0
