"""Editing of nets: change the weights of an implicit representation so that its image is dilated."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.experiments.question import ExperimentError, Forward, Question, Tensors
from nfopt.experiments.tasks.image_edits import IMAGE_EDITS
from nfopt.experiments.tasks.task import SCORE_BATCH, Network, Task
from nfopt.zoo import SIDES, Zoo
from nfopt.zoo.siren import grid, siren

OMEGA = 30.0


@dataclass(frozen=True)
class Editing(Task):
    """The squared error of the edited net's image against the edited image (Zhou et al. 2023, editing INRs).

    The edited weights are W + output_scale f(W). The target is the image operation on the image that the net
    itself renders, so a net that was badly fitted is edited as it is. Errors are in the units in which the
    nets hold their pixels. With several `nets` the reader returns as many edits, and the mean of the images
    of the edited nets counts, which is what successors found to help; it is then no longer one net.

    Attributes:
        edit: a name in `IMAGE_EDITS`.
        size: height and width of the rendered images.
        output_scale: factor on the reader's output.
        omega: the frequency factor of the nets' sines.
        nets: number of edited nets whose images are averaged.
    """

    metric: ClassVar[str] = "mse"
    higher_is_better: ClassVar[bool] = False
    edit: str = "dilate"
    size: int = 28
    output_scale: float = 0.01
    omega: float = OMEGA
    nets: int = 1

    def __post_init__(self) -> None:
        _ = IMAGE_EDITS[self.edit]
        if self.size < 3:
            raise ExperimentError(f"size is {self.size}; images of 3 x 3 pixels are the smallest to edit.")
        if self.nets < 1:
            raise ExperimentError(f"nets is {self.nets}; the images of 1 or more edited nets are averaged.")

    def question(self, zoo: Zoo, forward: Forward | None = None, inputs: int = 0) -> Question:
        """Return what a reader is asked: tensors of the nets' shapes."""
        return Question(
            zoo.spec,
            head="equivariant",
            outputs=self.nets,
            output_scale=self.output_scale,
            forward=forward,
            inputs=inputs,
        )

    def render(self, tensors: Tensors) -> Float[Tensor, "nets pixels"]:
        """Return the images of the nets, row by row; differentiable."""
        first = next(iter(tensors.values()))
        return siren(tensors, grid(self.size, self.size).to(first), omega_0=self.omega)[..., 0]

    @torch.no_grad()
    def targets(self, zoo: Zoo) -> Mapping[str, Tensor]:
        """Return the edited image of each net, and the squared error of leaving the net alone."""
        shown = torch.cat([self.render(part) for part in _batches(zoo.tensors)])
        wanted = IMAGE_EDITS[self.edit](shown.unflatten(1, (1, self.size, self.size))).flatten(1)
        return {"image": wanted, "untouched": (shown - wanted).square().mean(1)}

    def render_edited(self, network: Network, tensors: Tensors) -> Float[Tensor, "nets pixels"]:
        """Return the images of some nets after the edit; the mean over the edits of each net."""
        change = network(tensors)
        if self.nets == 1:
            return self.render({name: tensor + change[name] for name, tensor in tensors.items()})
        # The edits of a net become nets beside it, so that all are rendered at once.
        edited = {
            name: (tensor[..., None] + change[name]).movedim(-1, 1).flatten(0, 1)
            for name, tensor in tensors.items()
        }
        return self.render(edited).unflatten(0, (-1, self.nets)).mean(1)

    def loss(
        self, network: Network, tensors: Tensors, targets: Mapping[str, Tensor], draws: torch.Generator
    ) -> Tensor:
        """Return the mean squared error per pixel."""
        return (self.render_edited(network, tensors) - targets["image"]).square().mean()

    @torch.no_grad()
    def scores(
        self, network: Network, zoo: Zoo, targets: Mapping[str, Tensor], side: str
    ) -> dict[str, float]:
        """Return the mean squared error per pixel."""
        here = zoo.side == SIDES.index(side)
        wanted = targets["image"][here]
        errors = [
            (self.render_edited(network, part) - image).square().mean(1)
            for part, image in zip(
                _batches({name: tensor[here] for name, tensor in zoo.tensors.items()}),
                wanted.split(SCORE_BATCH),
                strict=True,
            )
        ]
        return {"mse": torch.cat(errors).mean().item()}

    def floor(self, zoo: Zoo, targets: Mapping[str, Tensor], side: str) -> tuple[str, float]:
        """Return the error of leaving the nets alone, and in words that of the best change of grey values.

        The latter is one factor and one shift for all pixels of all nets, fitted on the train side: what an
        edit comes to that knows of brightness and contrast and nothing of shape.
        """
        here = zoo.side == SIDES.index(side)
        wanted = targets["image"].double()
        with torch.no_grad():
            shown = torch.cat([self.render(part) for part in _batches(zoo.tensors)]).double()
        x, y = shown[zoo.side == 0], wanted[zoo.side == 0]
        factor = ((x - x.mean()) * (y - y.mean())).mean() / x.var(correction=0).clamp(min=1e-12)
        greys = y.mean() + factor * (shown[here] - x.mean())
        error = (greys - wanted[here]).square().mean().item()
        untouched = targets["untouched"][here].mean().item()
        return f"the nets left alone; with the best one change of grey values {error:.3g}", untouched


def as_images(pixels: Float[Tensor, "nets pixels"]) -> Float[Tensor, "nets height width"]:
    """Return square images from their pixels, row by row."""
    side = isqrt(pixels.shape[1])
    return pixels.unflatten(1, (side, side))


def _batches(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    count = len(next(iter(tensors.values())))
    return [
        {name: tensor[start : start + SCORE_BATCH] for name, tensor in tensors.items()}
        for start in range(0, count, SCORE_BATCH)
    ]
