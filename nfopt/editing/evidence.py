"""What base and edited model say about the same images: the numbers that a gate judges by."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nfopt.data import Split
from nfopt.editing.norms import batch_statistics, even_parts, measure_statistics, norms_of, put_statistics
from nfopt.metrics import classification_scores

OWN_STATISTICS = "source_own_statistics"
"""The source's images, seen by the model with BatchNorm statistics of these images put in place."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What one model says about one set of images.

    Attributes:
        finite: whether every logit is finite; the numbers below are 0 where not.
        confidence: mean of the largest probability, in [0, 1].
        effective_classes: exp of the entropy of how often each class is predicted: 1 where one class is
            predicted always, C where C classes are predicted equally often.
        top_share: share of the images that get the most frequent prediction.
        logit_rms: root mean square of the logits about their mean over classes.
        accuracy: share of right predictions; None without labels.
    """

    finite: bool
    confidence: float = 0.0
    effective_classes: float = 0.0
    top_share: float = 0.0
    logit_rms: float = 0.0
    accuracy: float | None = None


@dataclass(frozen=True)
class Evidence:
    """Answers before and after an edit, by set, and how far it moved the weights.

    Attributes:
        before: the base's answers for "target" and, where they were given, "source" and "held_out"; with
            BatchNorm also for the source with its own statistics.
        after: the edited model's answers.
        changes: RMS of the change over RMS of the base, by tensor of floating point.
        weight_changes: the same for parameters of two or more axes alone, whose scale is their own.
        deep_shift: RMS over the channels of the last BatchNorm layer of the change of their mean, in the
            base's deviations; None without BatchNorm.
        target_shift: how far the target's own mean lies from the base's there, whatever the edit did with it,
            less what the draw of the images explains; None without BatchNorm, and for one image alone.
    """

    before: Mapping[str, Answers]
    after: Mapping[str, Answers]
    changes: Mapping[str, float] = field(default_factory=dict)
    weight_changes: Mapping[str, float] = field(default_factory=dict)
    deep_shift: float | None = None
    target_shift: float | None = None


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor, batch_size: int = 256) -> Float[Tensor, "images classes"]:
    """Return the logits of a model, which is in evaluation mode."""
    return torch.cat([model(part).float() for part in images.split(batch_size)])


def answers(logits: Float[Tensor, "images classes"], labels: Int[Tensor, " images"] | None = None) -> Answers:
    """Return the numbers of some logits; images labelled -1 are left out of the accuracy."""
    if not bool(torch.isfinite(logits).all()):
        return Answers(finite=False, accuracy=None if labels is None else 0.0)
    counts = torch.bincount(logits.argmax(1), minlength=logits.shape[1]).double()
    shares = counts / counts.sum()
    entropy = float(torch.special.entr(shares).sum())
    centred = logits - logits.mean(1, keepdim=True)
    accuracy = None
    if labels is not None and bool((labels >= 0).any()):
        known = labels >= 0
        accuracy = classification_scores(logits[known], labels[known]).accuracy
    return Answers(
        finite=True,
        confidence=float(logits.softmax(1).amax(1).mean()),
        effective_classes=math.exp(entropy),
        top_share=float(shares.max()),
        logit_rms=float(centred.square().mean().sqrt()),
        accuracy=accuracy,
    )


def relative_changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """Return RMS change over RMS base of each changed tensor of floating point.

    A base of zeros is taken to have an RMS of 1e-3, so that the ratio is finite; where the change is not
    finite, neither is the ratio.
    """
    changes = {}
    for name, tensor in before.items():
        if not tensor.is_floating_point() or torch.equal(tensor, after[name]) or tensor.numel() == 0:
            continue
        base, other = tensor.detach().double(), after[name].detach().double()
        rms = float(base.square().mean().sqrt())
        changes[name] = float((other - base).square().mean().sqrt()) / max(rms, 1e-3)
    return changes


def gather(
    base: nn.Module,
    edited: nn.Module,
    sets: Mapping[str, tuple[Tensor, Tensor | None]],
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    batch_size: int = 256,
) -> Evidence:
    """Return the evidence of two models in evaluation mode on sets of images with or without labels."""
    said = [
        {name: answers(logits_of(model, x, batch_size), y) for name, (x, y) in sets.items()}
        for model in (base, edited)
    ]
    if "source" in sets and norms_of(base):
        # Statistics belong to a domain and weights to all of them: what the weights still know of the source
        # shows with the source's statistics.
        for model, found in zip((base, edited), said, strict=True):
            images, labels = sets["source"]
            found[OWN_STATISTICS] = answers(_logits_with_own_statistics(model, images, batch_size), labels)
    changes = relative_changes(before, after)
    weights = {name for name, parameter in base.named_parameters() if parameter.ndim >= 2}
    own = {name: change for name, change in changes.items() if name in weights}
    shifts = deep_shift(base, edited), target_shift(base, sets["target"][0], batch_size)
    return Evidence(said[0], said[1], changes, own, *shifts)


def deep_shift(base: nn.Module, edited: nn.Module) -> float | None:
    """Return the change of the means of the last BatchNorm layer, in its deviations (RMS over channels).

    What a corruption does to images is mostly undone below. The last layer tells classes apart: its means
    move where the images show other classes than the source, or too few to measure by.
    """
    pairs = list(zip(norms_of(base).values(), norms_of(edited).values(), strict=True))
    if not pairs:
        return None
    before, after = pairs[-1]
    assert before.running_mean is not None
    assert before.running_var is not None
    assert after.running_mean is not None
    deviation = (before.running_var.double() + before.eps).sqrt()
    shift = (after.running_mean.double() - before.running_mean.double()) / deviation
    return float(shift.square().mean().sqrt())


@torch.no_grad()
def target_shift(base: nn.Module, images: Tensor, batch_size: int = 256) -> float | None:
    """Return how far images move the mean of the last BatchNorm layer's input, in the base's deviations.

    The layers normalise by the images, as in `bn`, so that the answer is the same for every method. Of n
    images whose own means of a channel have the variance s^2, the draw alone moves their mean by s^2 / n in
    the square: with d the move in channel c, in deviations, the answer is

        sqrt(max(0, mean_c (d_c^2 - s_c^2 / n)))

    so that few images of all classes are not taken for images of one. None without BatchNorm, and for one
    image, which says nothing of how images differ.
    """
    norms = norms_of(base)
    if not norms or len(images) < 2:
        return None
    last = list(norms.values())[-1]
    seen: list[Tensor] = []

    def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].double().flatten(2).mean(2) if inputs[0].ndim > 2 else inputs[0].double())

    with batch_statistics(base):
        hook = last.register_forward_pre_hook(note)
        try:
            for part in even_parts(images, batch_size):
                base(part)
        finally:
            hook.remove()
    if not seen:
        return None
    assert last.running_mean is not None
    assert last.running_var is not None
    by_image = torch.cat(seen) - last.running_mean.double()
    by_image = by_image / (last.running_var.double() + last.eps).sqrt()
    drawn = by_image.var(0) / len(by_image)
    return float((by_image.mean(0).square() - drawn).mean().clamp(min=0).sqrt())


def _logits_with_own_statistics(model: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    copied = copy.deepcopy(model)
    put_statistics(copied, measure_statistics(copied, images, batch_size), images=len(images))
    return logits_of(copied, images, batch_size)


def scores_of(said: Mapping[str, Answers]) -> dict[str, float]:
    """Return the scores for the history: by set and name."""
    scores = {}
    for name, answer in said.items():
        scores[f"{name}_confidence"] = answer.confidence
        scores[f"{name}_effective_classes"] = answer.effective_classes
        if answer.accuracy is not None:
            scores[f"{name}_accuracy"] = answer.accuracy
    return scores


def as_pair(split: Split | None) -> tuple[Tensor, Tensor] | None:
    """Return the images and labels of a split."""
    return None if split is None else (split.images, split.labels)
