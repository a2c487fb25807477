"""Method `bn-eb`: BatchNorm statistics by empirical Bayes, less what the draw of few images explains."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nfopt.editing.editor.forward import NetForward, NormInput, NormRule
from nfopt.editing.methods.method import Method, Task, edit_method
from nfopt.editing.model_state import state_of
from nfopt.editing.norms import statistics_of
from nfopt.errors import EditingError

LOWEST, HIGHEST, PLACES = -5.0, 1.0, 25
"""Powers of ten between which the variance of a shift is looked for, and in how many places."""
TINY = 1e-9


@edit_method("bn-eb")
@dataclass(frozen=True)
class EmpiricalBayesStatistics(Method):
    """Each BatchNorm layer takes the part of its shift that is unlike the differences between images.

    The images run through the net once, each layer normalising by what it has just chosen. A layer of C
    channels with source statistics (m, v) sees the means and variances (m', v') of n images. Of
    d = (m' - m) / sqrt(v), and likewise of d = log(v' / v) / 2, it is assumed that

        d = shift + error,    error ~ N(0, S),    shift ~ N(0, t I)

    with S the covariance of the images' own values divided by n, and t the most likely one; the new
    statistics are those of the mean of the shift given d, t (t I + S)^-1 d. In directions in which images
    differ much (light, contrast, what they show) little is taken from few of them, in all others nearly
    everything; a layer that has not moved farther than chance stays. The more images, the nearer to `bn`.
    It costs two eigendecompositions of a C x C matrix for each layer.

    Source: Efron & Morris 1973, "Stein's estimation rule and its competitors: an empirical Bayes approach".

    Attributes:
        diagonal: share of S that is its diagonal alone, in (0, 1]: from few images covariances are poorly
            known.
    """

    diagonal: float = 0.3
    needs: ClassVar[frozenset[str]] = frozenset({"batchnorm"})

    def __post_init__(self) -> None:
        if not 0 < self.diagonal <= 1:
            raise EditingError(f"diagonal of bn-eb is {self.diagonal}; it must be above 0 and at most 1.")

    def touches(self, model: nn.Module, example: Tensor) -> list[str]:
        """Return the statistics."""
        return statistics_of(model)

    @torch.no_grad()
    def fit(self, model: nn.Module, task: Task) -> Mapping[str, Any]:
        """Choose statistics layer by layer, and put them in place."""
        state = state_of(model)
        held = {name: tensor.detach().clone() for name, tensor in state.items() if tensor.is_floating_point()}
        _, norms = NetForward(model)(held, task.images, rule=lambda: _Shrunk(self.diagonal))
        for name, value in norms.blended.items():
            state[name].copy_(value)
        return {"layers": len(norms.blended) // 2}


@dataclass(frozen=True)
class _Shrunk(NormRule):
    """Statistics of a layer by empirical Bayes."""

    diagonal: float

    def __call__(self, seen: NormInput) -> tuple[Tensor, Tensor]:
        values = seen.inputs.movedim(1, 0).double()
        values = values.reshape(*values.shape[:2], -1)
        images, each = values.shape[1:]
        mean, var = seen.mean.double(), seen.var.double() + seen.eps
        by_image = values.mean(2)
        found = by_image.mean(1)
        squares = (values - found[:, None, None]).square().mean(2)
        target = squares.mean(1) * (images * each / max(images * each - 1, 1)) + seen.eps
        deviation = var.sqrt()
        shift = shrunk(
            (found - mean) / deviation, (by_image - found[:, None]) / deviation[:, None], self.diagonal
        )
        spread = (squares - squares.mean(1, keepdim=True)) / target[:, None] / 2
        ratio = shrunk((target / var).log() / 2, spread, self.diagonal)
        return (mean + shift * deviation).to(seen.mean), (var * (2 * ratio).exp() - seen.eps).to(seen.var)


def shrunk(
    moved: Float[Tensor, " channels"], by_image: Float[Tensor, "channels images"], diagonal: float
) -> Float[Tensor, " channels"]:
    """Return the mean of a shift given what is seen of it: t (t I + S)^-1 d, with t of largest likelihood.

    Args:
        moved: what is seen, d.
        by_image: the images' deviations from their mean; S is their covariance over the number of images.
            Of one image alone nothing is known of how images differ: S is then the identity.
        diagonal: share of S that is its diagonal alone.
    """
    channels, images = by_image.shape
    if images > 1:
        noise = by_image @ by_image.T / (images * (images - 1))
        noise = torch.lerp(noise, noise.diagonal().diag(), diagonal)
    else:
        noise = torch.eye(channels).to(by_image)
    errors, axes = torch.linalg.eigh(noise + TINY * torch.eye(channels).to(noise))
    along = axes.T @ moved
    variances = torch.logspace(LOWEST, HIGHEST, PLACES).to(moved)
    total = variances[:, None] + errors
    likelihood = -(along.square() / total + total.log()).sum(1)
    best = variances[likelihood.argmax()]
    return axes @ (best / (best + errors) * along)
