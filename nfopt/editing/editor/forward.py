"""NetForward: a model as a function of its tensors, its BatchNorm statistics blended with those of images."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from nfopt.editing.norms import norms_of

Tensors = Mapping[str, Float[Tensor, "..."]]


@dataclass(frozen=True)
class NormState:
    """What BatchNorm layers saw in one forward pass, by the names of the running statistics.

    Attributes:
        measured: means and variances of the layers' inputs, each [*nets, channels].
        blended: what the layers normalised by; equal to the tensors' own where nothing was blended.
    """

    measured: dict[str, Tensor] = field(default_factory=dict)
    blended: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class NormInput:
    """What a BatchNorm layer of one net is about to normalise.

    Attributes:
        inputs: [images, channels, ...].
        mean: the source's running mean, [channels].
        var: the source's running variance, [channels].
        weight: the layer's scale, [channels]; None if it has none.
        bias: its shift, likewise.
        eps: added to variances.
    """

    inputs: Float[Tensor, "images channels ..."]
    mean: Float[Tensor, " channels"]
    var: Float[Tensor, " channels"]
    weight: Float[Tensor, " channels"] | None
    bias: Float[Tensor, " channels"] | None
    eps: float


class NormRule(ABC):
    """Chooses, layer after layer of one forward pass, the statistics that a layer normalises by."""

    @abstractmethod
    def __call__(self, seen: NormInput) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
        """Return mean and variance."""


class NetForward:
    """Logits of a module in evaluation mode as a differentiable function of parameters and statistics.

    PyTorch's batch_norm has no derivative with respect to running statistics. So each layer is given the
    statistics 0 and 1, and its input is normalised before it: the layer, whatever else it does (activations
    of timm's norm layers), computes what it would with the given ones.

    With shares s per channel, a layer that sees a batch of moments (m, v) normalises by (1 - s) source + s
    (m, v) (Schneider et al. 2020, equation 2), and so do the layers above see what it then lets through.

    Args:
        module: a module in evaluation mode, for its structure; it is not changed.
        many: whether tensors and images have a leading dimension of nets, which then run side by side.
    """

    def __init__(self, module: nn.Module, *, many: bool = False) -> None:
        self.module, self.many = module, many
        self.norms = norms_of(module)

    def __call__(
        self,
        tensors: Tensors,
        images: Float[Tensor, "..."],
        shares: Tensors | None = None,
        rule: Callable[[], NormRule] | None = None,
    ) -> tuple[Float[Tensor, "*nets images classes"], NormState]:
        """Return the logits and what the BatchNorm layers saw.

        Args:
            tensors: parameters and running statistics by name; what is left out is the module's own.
            images: [*nets, images, ...] as the module takes them; one set for each net if there are many.
            shares: for each BatchNorm layer the share of the images' statistics per channel, each
                [*nets, channels] or [*nets, 1]; None uses the tensors' statistics alone.
            rule: makes the rule that chooses the statistics of one pass, in the place of shares.
        """
        given = {} if shares is None else dict(shares)
        one = partial(self._one, rule=rule)
        run = vmap(one) if self.many else one
        logits, measured, blended = run(dict(tensors), images, given)
        return logits, NormState(measured, blended)

    def _one(
        self,
        tensors: dict[str, Tensor],
        images: Tensor,
        shares: dict[str, Tensor],
        rule: Callable[[], NormRule] | None,
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        chooses = None if rule is None else rule()
        measured: dict[str, list[Tensor]] = {}
        blended: dict[str, list[Tensor]] = {}
        replaced = dict(tensors)
        statistics: dict[str, tuple[Tensor, Tensor]] = {}
        for name, norm in self.norms.items():
            mean_name, var_name = statistics_names(name)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            statistics[name] = (
                tensors.get(mean_name, norm.running_mean),
                tensors.get(var_name, norm.running_var),
            )
            replaced[mean_name] = torch.zeros_like(norm.running_mean)
            replaced[var_name] = torch.ones_like(norm.running_var)

        def enter(name: str, norm: Any, inputs: Tensor) -> Tensor:
            mean, var = statistics[name]
            if name in shares:
                seen = _moments(inputs)
                share = shares[name]
                mean, var = mean + share * (seen[0] - mean), var + share * (seen[1] - var)
                for kind, value, blend in zip(statistics_names(name), seen, (mean, var), strict=True):
                    measured.setdefault(kind, []).append(value)
                    blended.setdefault(kind, []).append(blend)
            elif chooses is not None:
                prefix = statistics_names(name)[0].removesuffix("running_mean")
                weight, bias = (replaced.get(prefix + k, getattr(norm, k)) for k in ("weight", "bias"))
                mean, var = chooses(NormInput(inputs, mean, var, weight, bias, norm.eps))
                for kind, blend in zip(statistics_names(name), (mean, var), strict=True):
                    blended.setdefault(kind, []).append(blend)
            scale = ((1 + norm.eps) / (var + norm.eps)).sqrt()
            shape = (1, -1, *(1,) * (inputs.ndim - 2))
            return (inputs - mean.view(shape).to(inputs)) * scale.view(shape).to(inputs)

        with self._hooked(enter):
            logits = functional_call(self.module, replaced, (images,))
        return logits, _joined(measured), _joined(blended)

    @contextmanager
    def _hooked(self, enter: Any) -> Iterator[None]:
        hooks = [
            norm.register_forward_pre_hook(
                lambda norm, inputs, name=name: (enter(name, norm, inputs[0]), *inputs[1:])
            )
            for name, norm in self.norms.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def statistics_names(norm: str) -> tuple[str, str]:
    """Return the names of the running mean and variance of the layer `norm`."""
    prefix = f"{norm}." if norm else ""
    return f"{prefix}running_mean", f"{prefix}running_var"


def _moments(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance over all axes but the second, that of the channels."""
    values = inputs.movedim(1, 0).flatten(1)
    mean = values.mean(1)
    squares = (values - mean[:, None]).square().sum(1)
    return mean, squares / max(values.shape[1] - 1, 1)


def _joined(found: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
    """Return the mean over the calls of a layer: most run once in a forward pass."""
    return {
        name: values[0] if len(values) == 1 else torch.stack(values).mean(0) for name, values in found.items()
    }
