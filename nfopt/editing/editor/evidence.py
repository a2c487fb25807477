"""What the editor observes of a net on target images: gradients, statistics, numbers about predictions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import log

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from nfopt.editing.editor.forward import NetForward, NormState, statistics_names

CONTEXT = 8
"""Numbers of `Observed.context`."""
NORM_CHANNELS = 2
"""Numbers per channel of a BatchNorm layer: shift and log-ratio of scale."""


@dataclass(frozen=True)
class Targets:
    """The target images of one net, or of many nets side by side.

    Attributes:
        images: [*nets, images, ...] as the nets take them.
        labels: the class of each, -1 where it is not known; None without any.
    """

    images: Float[Tensor, "..."]
    labels: Int[Tensor, "*nets images"] | None = None


@dataclass(frozen=True)
class Observed:
    """What is known of nets on target images; nothing of it carries gradients to the nets.

    Attributes:
        unsupervised: gradient of information maximisation by parameter; empty if images were not shown.
        labelled: gradient of cross-entropy on the labelled images; empty without labels.
        norms: for each running statistic, and each scale and shift beside it, [*nets, channels, 2]: by how
            many source deviations the mean has moved, and the log-ratio of deviations; empty without images.
        context: [*nets, CONTEXT] numbers about the images and the predictions, zeros without images.
    """

    unsupervised: Mapping[str, Tensor] = field(default_factory=dict)
    labelled: Mapping[str, Tensor] = field(default_factory=dict)
    norms: Mapping[str, Tensor] = field(default_factory=dict)
    context: Tensor = field(default_factory=lambda: torch.zeros(CONTEXT))


def observe(
    forward: NetForward,
    tensors: Mapping[str, Tensor],
    shares: Mapping[str, Tensor],
    targets: Targets,
    progress: float,
) -> Observed:
    """Run the nets on their target images and return what is seen.

    Args:
        forward: the nets' forward pass.
        tensors: their parameters and statistics by name, each [*nets, *shape].
        shares: see `NetForward`.
        targets: what they are shown.
        progress: the round as a share of all rounds, in [0, 1].
    """
    statistics = {name for norm in forward.norms for name in statistics_names(norm)}
    leaves = {
        name: tensor.detach().requires_grad_(name not in statistics) for name, tensor in tensors.items()
    }
    parameters = {name: tensor for name, tensor in leaves.items() if name not in statistics}
    with torch.enable_grad():
        logits, norms = forward(leaves, targets.images, {n: s.detach() for n, s in shares.items()})
        logits = logits.float()
        loss = information_loss(logits)
        unsupervised = _gradients(loss, parameters, retain=targets.labels is not None)
        labelled: dict[str, Tensor] = {}
        if targets.labels is not None and bool((targets.labels >= 0).any()):
            labelled = _gradients(labelled_loss(logits, targets.labels), parameters)
    context = _context(logits.detach(), targets.labels, progress)
    return Observed(unsupervised, labelled, _norm_channels(forward, tensors, norms), context)


def information_loss(logits: Float[Tensor, "*nets images classes"]) -> Float[Tensor, "*nets"]:
    """Return mean entropy of the predictions less entropy of their mean, of each net.

    Source: Liang et al. 2020 (arXiv:2002.08546), equation 3.
    """
    logs = logits.log_softmax(-1)
    mean = logs.exp().mean(-2)
    return -(logs.exp() * logs).sum(-1).mean(-1) + (mean * mean.clamp_min(1e-12).log()).sum(-1)


def labelled_loss(
    logits: Float[Tensor, "*nets images classes"], labels: Int[Tensor, "*nets images"]
) -> Float[Tensor, "*nets"]:
    """Return the mean cross-entropy of each net over its labelled images; 0 for a net that has none."""
    known = labels >= 0
    losses = functional.cross_entropy(
        logits.flatten(0, -2), labels.clamp_min(0).flatten(), reduction="none"
    ).view_as(labels)
    return torch.where(known, losses, 0).sum(-1) / known.sum(-1).clamp_min(1)


def _gradients(loss: Tensor, parameters: Mapping[str, Tensor], *, retain: bool = False) -> dict[str, Tensor]:
    # Nets are independent: the gradient of the sum holds the gradient of each.
    found = torch.autograd.grad(loss.sum(), list(parameters.values()), retain_graph=retain, allow_unused=True)
    return {name: g for name, g in zip(parameters, found, strict=True) if g is not None}


def _context(
    logits: Float[Tensor, "*nets images classes"], labels: Tensor | None, progress: float
) -> Float[Tensor, "*nets context"]:
    count, classes = logits.shape[-2:]
    logs = logits.log_softmax(-1)
    probabilities = logs.exp()
    mean = probabilities.mean(-2)
    entropy = -(probabilities * logs).sum(-1).mean(-1) / log(classes)
    spread = -(mean * mean.clamp_min(1e-12).log()).sum(-1) / log(classes)
    known = torch.zeros_like(entropy) if labels is None else (labels >= 0).float().mean(-1)
    plain = (1.0, log(count / 64) / 4, log(classes / 10) / 4, progress)
    numbers = [torch.full_like(entropy, value) for value in plain]
    return torch.stack([*numbers, entropy, spread, probabilities.amax(-1).mean(-1), known], dim=-1)


def _norm_channels(forward: NetForward, tensors: Mapping[str, Tensor], norms: NormState) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, norm in forward.norms.items():
        mean_name, var_name = statistics_names(name)
        if mean_name not in norms.measured or mean_name not in tensors or var_name not in tensors:
            continue
        mean, var = tensors[mean_name].detach(), tensors[var_name].detach()
        shift = (norms.measured[mean_name].detach() - mean) / (var + norm.eps).sqrt()
        ratio = ((norms.measured[var_name].detach() + norm.eps) / (var + norm.eps)).log() / 2
        both = torch.stack([shift.asinh(), ratio.clamp(-4, 4)], dim=-1)
        prefix = mean_name.removesuffix("running_mean")
        for kind in ("running_mean", "running_var", "weight", "bias"):
            if f"{prefix}{kind}" in tensors:
                found[f"{prefix}{kind}"] = both
    return found
