"""WeightSpaceFeatures: scale-free channels per weight and per tensor, from weights, gradients and more."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.errors import NfoptError
from nfopt.symmetry.spec import PermutationSpec
from nfopt.weightspace.blocks import BlockPlan, block_plan

LOG_FLOOR = 8.0
"""Log-ratios are kept within -LOG_FLOOR .. LOG_FLOOR; a tensor of zeros has -LOG_FLOOR."""
_ABSENT = -1e4  # stands for the logarithm of zero, and survives arithmetic in float32


class FeatureError(NfoptError):
    """Features were asked of tensors that have none: not finite, not real, or not the ones configured."""


@dataclass(frozen=True, eq=False)
class FeatureBlocks:
    """Features of every block of a plan.

    Attributes:
        plan: the blocks.
        elements: for each block [*batch, n_1, ..., n_d, element channels].
        tensors: for each block the features of its tensor.
    """

    plan: BlockPlan
    elements: tuple[Float[Tensor, "..."], ...]
    tensors: Float[Tensor, "*batch blocks channels"]


@dataclass(frozen=True)
class WeightSpaceFeatures:
    """Features of weights W, their gradients G, and further tensors of the weights' shapes.

    With x^ = x / rms(x) over the tensor, for each source x (W, then G, then `extras`):

        per element: asinh(x^), log(|x^| + 0.01) / log(100); and asinh(W^ G^) if there are gradients
        per tensor:  whether the source has the tensor, log-ratio of its scale, cosine to the source before

    The log-ratio of W is taken to 1 / sqrt(fan-in), those of the others to the rms over all tensors of the
    source. So nothing changes when the loss, and with it every gradient, is multiplied by a constant.
    A source that lacks a tensor (no gradient reached it) has zeros there, told apart by the first channel.

    Attributes:
        gradients: whether gradients are given.
        extras: names of the further sources ("momentum").
    """

    gradients: bool = True
    extras: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.extras)) != len(self.extras):
            raise FeatureError(f"extra sources {self.extras} name one twice.")

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources, in the order of the channels."""
        return ("weights", *(("gradients",) if self.gradients else ()), *self.extras)

    @property
    def element_channels(self) -> int:
        """Number of channels per element."""
        return 2 * len(self.sources) + int(self.gradients)

    @property
    def tensor_channels(self) -> int:
        """Number of channels per tensor."""
        return 3 * len(self.sources) - 1

    def __call__(
        self,
        spec: PermutationSpec,
        weights: Mapping[str, Float[Tensor, "..."]],
        gradients: Mapping[str, Float[Tensor, "..."]] | None = None,
        extras: Mapping[str, Mapping[str, Float[Tensor, "..."]]] | None = None,
    ) -> FeatureBlocks:
        """Return the features of every block of the tensors in `weights`.

        Args:
            spec: the permutation spec; tensors of it that `weights` leaves out are left out.
            weights: parameters and statistics by name, each [*batch, *shape].
            gradients: gradients by name; some may be missing.
            extras: for each configured extra source its tensors by name; some may be missing.

        Raises:
            FeatureError: a number is not finite, a tensor is not real, or the sources are not those
                configured.
            PermutationSpecError: the tensors do not fit the spec.
        """
        plan = block_plan(spec, weights)
        sources = self._sources(plan, weights, gradients, extras)
        _check_numbers(sources)
        dtype = torch.float32
        for tensors in sources.values():
            for tensor in tensors.values():
                dtype = torch.promote_types(dtype, tensor.dtype)
        base = sources["weights"]
        batch = _batch(plan, base)
        scaled: dict[str, dict[str, Tensor]] = {}
        logs: dict[str, dict[str, Tensor]] = {}
        for source, tensors in sources.items():
            scaled[source], logs[source] = {}, {}
            for name, tensor in tensors.items():
                scaled[source][name], logs[source][name] = _normalise(tensor.to(dtype), len(batch))
        elements = {name: self._element_channels(name, scaled) for name in plan.axes}
        per_tensor = self._tensor_channels(plan, scaled, logs)
        return FeatureBlocks(
            plan,
            tuple(plan.to_blocks(elements, channels=True)),
            torch.stack([per_tensor[block.tensor] for block in plan.blocks], dim=-2)
            if plan.blocks
            else torch.zeros(*batch, 0, self.tensor_channels, dtype=dtype),
        )

    def _sources(
        self,
        plan: BlockPlan,
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor] | None,
        extras: Mapping[str, Mapping[str, Tensor]] | None,
    ) -> dict[str, dict[str, Tensor]]:
        given: dict[str, Mapping[str, Tensor]] = {"weights": weights, **(extras or {})}
        if gradients is not None:
            given["gradients"] = gradients
        if set(given) != set(self.sources):
            raise FeatureError(
                f"these features are made of {', '.join(self.sources)}, but {', '.join(given)} were given. "
                "Pass the same sources, or configure WeightSpaceFeatures(gradients=..., extras=...)."
            )
        result = {"weights": plan.canonical(weights)}
        for source in self.sources[1:]:
            result[source] = plan.canonical(given[source], partial=True)
            for name, tensor in result[source].items():
                expected = result["weights"][name].shape
                if tensor.shape != expected:
                    raise FeatureError(
                        f"{source} of {name} have shape {tuple(tensor.shape)}, but the weights have "
                        f"{tuple(expected)}."
                    )
        return result

    def _element_channels(self, name: str, scaled: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
        weight = scaled["weights"][name]
        channels = []
        for source in self.sources:
            values = scaled[source].get(name)
            values = torch.zeros_like(weight) if values is None else values
            channels += [values.asinh(), (values.abs() + 0.01).log() / log(100)]
            if source == "gradients":
                channels.append((weight * values).asinh())
        return torch.stack(channels, dim=-1)

    def _tensor_channels(
        self,
        plan: BlockPlan,
        scaled: Mapping[str, Mapping[str, Tensor]],
        logs: Mapping[str, Mapping[str, Tensor]],
    ) -> dict[str, Tensor]:
        fan_in = {block.tensor: block.fan_in for block in plan.blocks}
        overall = {s: _log_overall_rms(logs[s], scaled[s]) for s in self.sources[1:] if logs[s]}
        result = {}
        for name in fan_in:
            weight = scaled["weights"][name]
            zero = torch.zeros_like(logs["weights"][name])
            channels = []
            for i, source in enumerate(self.sources):
                values = scaled[source].get(name)
                if values is None:
                    channels += [zero, zero] + ([zero] if i else [])
                    continue
                here = logs[source][name]
                reference = overall[source] if i else zero - log(max(1, fan_in[name])) / 2
                ratio = torch.where(here > _ABSENT, here - reference, -LOG_FLOOR)
                channels += [zero + 1, ratio.clamp(-LOG_FLOOR, LOG_FLOOR) / 4]
                if i:
                    before = scaled[self.sources[i - 1]].get(name)
                    before = weight if before is None else before
                    # Both have root mean square 1 (or are zero): the cosine is the mean of the product.
                    both = (values * before).reshape(*zero.shape, -1)
                    channels.append(both.sum(-1) / max(1, both.shape[-1]))
            result[name] = torch.stack(channels, dim=-1)
        return result


def _batch(plan: BlockPlan, weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    plan.to_blocks(weights)  # refuses what does not fit
    for name, axes in plan.axes.items():
        shape = tuple(weights[name].shape)
        return shape[: len(shape) - len(axes)]
    return ()


def _check_numbers(sources: Mapping[str, Mapping[str, Tensor]]) -> None:
    flags: list[Tensor] = []
    places: list[str] = []
    for source, tensors in sources.items():
        for name, tensor in tensors.items():
            if not tensor.is_floating_point():
                raise FeatureError(f"{source} of {name} are {tensor.dtype}; features need real numbers.")
            flags.append(torch.isfinite(tensor).all())
            places.append(f"{source} of {name}")
    # One transfer for all tensors: on an accelerator each would wait for the device.
    finite = torch.stack(flags).tolist() if flags else []
    bad = [place for place, fine in zip(places, finite, strict=True) if not fine]
    if bad:
        raise FeatureError(
            f"{', '.join(bad[:5])}{f' and {len(bad) - 5} more' if len(bad) > 5 else ''} hold NaN or "
            "infinity. Find where they come from, or skip this step: they are not replaced."
        )


def _normalise(tensor: Tensor, batch_dims: int) -> tuple[Tensor, Tensor]:
    """Return x / rms(x) of each net, and log rms(x); zeros give zeros and `_ABSENT`."""
    flat = tensor.reshape(*tensor.shape[:batch_dims], -1)
    if not flat.shape[-1]:
        return tensor, tensor.new_full(tensor.shape[:batch_dims], _ABSENT)
    # Divided by the largest first, so that squares neither overflow nor vanish.
    peak = flat.detach().abs().amax(-1, keepdim=True)
    zero = peak == 0
    peak = torch.where(zero, 1, peak)
    unit = flat / peak
    square = torch.where(zero, 1, unit.square().mean(-1, keepdim=True))
    log_rms = torch.where(zero, _ABSENT, peak.log() + square.log() / 2)
    return (unit / square.sqrt()).reshape(tensor.shape), log_rms.squeeze(-1)


def _log_overall_rms(logs: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
    counts = [max(1, tensors[name].numel() // max(1, logs[name].numel())) for name in logs]
    terms = [2 * value + log(count) for value, count in zip(logs.values(), counts, strict=True)]
    return (torch.logsumexp(torch.stack(terms), dim=0) - log(sum(counts))) / 2
