"""Method `eata`: entropy minimised on reliable, varied images, with Fisher information against forgetting."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from nfopt.editing.methods.descent import chosen_parameters, descend_by_batch, entropies, notes_of
from nfopt.editing.methods.method import Method, Task, edit_method
from nfopt.editing.methods.options import check_descent
from nfopt.editing.norms import (
    affine_parameters,
    statistics_of,
)


def sample_weights(
    logits: Float[Tensor, "images classes"],
    mean: Float[Tensor, " classes"] | None,
    *,
    entropy_share: float,
    redundancy: float,
) -> Float[Tensor, " images"]:
    """Return S(x) of Niu et al. 2022, equations 3, 5 and 6.

    exp(E0 - E(x)) where the entropy E(x) is below E0 = `entropy_share` ln(classes) and the cosine of the
    prediction with the moving `mean` of past ones is below `redundancy`; 0 elsewhere.
    """
    limit = entropy_share * math.log(logits.shape[1])
    entropy = entropies(logits)
    weights = torch.where(entropy < limit, (limit - entropy).exp(), torch.zeros_like(entropy))
    if mean is not None:
        cosine = functional.cosine_similarity(logits.softmax(1), mean[None], dim=1)
        weights = torch.where(cosine.abs() < redundancy, weights, torch.zeros_like(weights))
    return weights.detach()


def fisher_information(
    model: nn.Module, images: Tensor, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Return the mean over images of the squared gradient of cross-entropy to the model's own prediction.

    Source: Niu et al. 2022, equation 8; one backward pass per image.
    """
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for image in images.split(1):
        logits = model(image)
        loss = functional.cross_entropy(logits, logits.argmax(1))
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient**2 / len(images)
    return total


@edit_method("eata")
@dataclass(frozen=True)
class Eata(Method):
    """Weighted entropy of chosen images over BatchNorm's scales and shifts, by SGD with momentum 0.9.

    Source: Niu et al. 2022, "Efficient test-time model adaptation without forgetting" (arXiv:2204.02610).
    The Fisher term needs kept source images; without them it is left away (the paper's ETA).

    Attributes:
        lr: learning rate; the paper's 0.005 of CIFAR-10.
        steps: optimizer steps.
        batch_size: images per step.
        entropy_share: images above that share of the largest entropy are left out; the paper's 0.4.
        redundancy: images whose prediction has at least that cosine with the mean one are left out; the
            paper's 0.4 of CIFAR-10 (0.05 for ImageNet).
        fisher_weight: beta; the paper's 1 of CIFAR-10 (2,000 for ImageNet).
        fisher_images: kept source images that the Fisher information is measured on, at most.
        source_count: of the final statistics, see `bn`.
        include: patterns of the parameters to train; None for the scales and shifts of BatchNorm.
    """

    lr: float = 5e-3
    steps: int = 20
    batch_size: int = 64
    entropy_share: float = 0.4
    redundancy: float = 0.4
    fisher_weight: float = 1.0
    fisher_images: int = 64
    source_count: float = 0.0
    include: tuple[str, ...] | None = None
    needs: ClassVar[frozenset[str]] = frozenset({"batchnorm"})

    def __post_init__(self) -> None:
        check_descent(
            self,
            source_count=self.source_count,
            entropy_share=self.entropy_share,
            redundancy=self.redundancy,
            fisher_weight=self.fisher_weight,
            fisher_images=self.fisher_images,
        )

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the parameters that are trained."""
        return chosen_parameters(model, self.include, affine_parameters(model))

    def touches(self, model: nn.Module, example: Tensor) -> list[str]:
        """Return the trained parameters and the statistics."""
        return [*self.parameters(model), *statistics_of(model)]

    def fit(self, model: nn.Module, task: Task) -> Mapping[str, Any]:
        """Measure the Fisher information, descend, then put the statistics."""
        parameters = self.parameters(model)
        fisher: dict[str, Tensor] = {}
        if task.source is not None and self.fisher_weight > 0:
            fisher = fisher_information(model, task.source.images[: self.fisher_images], parameters)
        anchor = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        mean: Tensor | None = None
        used = 0

        def objective(logits: Tensor, _: Tensor) -> Tensor | None:
            nonlocal mean, used
            weights = sample_weights(
                logits, mean, entropy_share=self.entropy_share, redundancy=self.redundancy
            )
            chosen = weights > 0
            if not chosen.any():
                return None
            used += int(chosen.sum())
            now = logits.detach().softmax(1)[chosen].mean(0)
            mean = now if mean is None else 0.9 * mean + 0.1 * now
            loss = (weights[chosen] * entropies(logits[chosen])).mean()
            for name, information in fisher.items():
                moved = parameters[name] - anchor[name]
                loss = loss + self.fisher_weight * (information * moved**2).sum()
            return loss

        losses = descend_by_batch(
            self.name,
            model,
            parameters,
            lambda trained: torch.optim.SGD(trained, self.lr, momentum=0.9),
            objective,
            task,
            steps=self.steps,
            batch_size=self.batch_size,
            source_count=self.source_count,
        )
        return {**notes_of(parameters, losses), "images_used": used, "fisher": bool(fisher)}
