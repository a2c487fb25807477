"""Proof of a removal: in float64, the smaller model computes what the original does with zeroed channels."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from nfopt.errors import PruningError
from nfopt.pruning.channels.subset import Kept, kept_positions, zeroed
from nfopt.pruning.channels.surgery import without_channels
from nfopt.symmetry import Axis, PermutationSpec
from nfopt.symmetry.float64 import RandomisedModule
from nfopt.symmetry.trace import FORWARD_ERRORS

TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class RemovalProof:
    """What came of one removal.

    Attributes:
        error: largest |difference| of an output element over the output's deviation; infinite where the
            smaller model does not run or its outputs have another shape.
        reason: where and why it fails, for people; empty where it does not.
        tolerance: the largest error that passes.
    """

    error: float
    reason: str = ""
    tolerance: float = TOLERANCE

    @property
    def passed(self) -> bool:
        """Whether the smaller model computes the same."""
        return self.error <= self.tolerance


class RemovalProver:
    """Proves removals from one model: a float64 copy with random weights, and its smaller versions.

    The weights are drawn at random, so that no zero-initialised scale hides a fault.

    Args:
        model: the model; not changed.
        spec: its symmetry.
        example_inputs: as for `trace_permutation_spec`.
        seed: seed of weights and inputs.
    """

    def __init__(
        self, model: nn.Module, spec: PermutationSpec, example_inputs: Any, *, seed: int = 0
    ) -> None:
        self._spec = spec
        generator = torch.Generator().manual_seed(seed)
        self._original = RandomisedModule(model, spec, example_inputs, generator)
        # Smaller copies are made of one that has never run: a forward pass may store what has the old sizes.
        self._template = copy.deepcopy(self._original.skeleton.module)

    def _without(self, kept: Kept) -> RandomisedModule:
        """Return the randomised model without channels, with the original's inputs."""
        other = copy.copy(self._original)
        smaller = without_channels(self._template, self._spec, kept)
        other.skeleton = replace(self._original.skeleton, module=smaller)
        # It is run once: nothing is to be put back before a second run.
        other.base, other.promoted, other._changed, other._state = {}, {}, {}, []
        return other

    def prove(self, kept: Kept, *, explain: bool = True) -> RemovalProof:
        """Return whether the model without the other indices of the groups in `kept` computes the same."""
        spec = self._spec
        try:
            less = self._without(kept)
        except PruningError as error:
            return RemovalProof(inf, str(error))
        base = self._original.base
        with_zeros = {
            name: zeroed(base[name], entry.axes, kept)
            for name, entry in spec.tensors.items()
            if any(kept_positions(axis, kept) is not None for axis in entry.axes)
        }
        watch = _Watch(less)
        try:
            outputs = less.run()
        except FORWARD_ERRORS as error:
            line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            return RemovalProof(inf, f"{watch.place} does not take fewer channels: {line[:160]}")
        finally:
            # Hooks and notes hold each other: a whole model of every proof would wait for the collector.
            watch.stop()
        reference = self._original.run(with_zeros)
        error = difference(reference, outputs)
        if error <= TOLERANCE or not explain:
            return RemovalProof(error)
        before = _Watch(self._original)
        self._original.run(with_zeros)
        before.stop()
        return RemovalProof(error, _first_difference(before, watch, _axes_that_shrink(spec, kept), kept))


def difference(reference: list[Tensor], outputs: list[Tensor]) -> float:
    """Return max |dy| / std(y), the worst over the outputs; infinite where shapes or finiteness differ."""
    if len(reference) != len(outputs):
        return inf
    worst = 0.0
    for before, after in zip(reference, outputs, strict=True):
        if before.shape != after.shape or bool((before.isfinite() != after.isfinite()).any()):
            return inf
        finite = before.isfinite()
        if bool(finite.any()):
            gap = float((before[finite] - after[finite]).abs().max())
            scale = float(before[finite].abs().max() if finite.sum() < 2 else before[finite].std())
            worst = max(worst, gap / scale if scale > 0 else (inf if gap > 0 else 0.0))
    return worst


class _Watch:
    """Notes what every part of a model returns in its next run, and in which part it is."""

    def __init__(self, randomised: RandomisedModule) -> None:
        self.outputs: dict[tuple[str, int], tuple[str, list[Tensor]]] = {}
        self._inside: list[str] = []
        self._parts = dict(randomised.skeleton.module.named_modules())
        self._calls: dict[str, int] = {}
        self._handles = []
        for name, part in randomised.skeleton.module.named_modules():
            self._handles += [
                part.register_forward_pre_hook(self._enter(name)),
                part.register_forward_hook(self._leave(name)),
            ]

    @property
    def place(self) -> str:
        """The innermost part that was entered and not left."""
        return self._inside[-1] if self._inside else "the model"

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, name: str) -> Any:
        def hook(*_: Any) -> None:
            self._inside.append(self._title(name))

        return hook

    def _leave(self, name: str) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            self._inside.pop()
            self._calls[name] = self._calls.get(name, 0) + 1
            tensors = [
                leaf.detach().clone() for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)
            ]
            self.outputs[name, self._calls[name]] = (self._title(name), tensors)

        return hook

    def _title(self, name: str) -> str:
        """Return name and type of a part; of what it is in if it only hands its input on."""
        while name and isinstance(self._parts[name], nn.Identity | nn.Dropout):
            name = name.rpartition(".")[0]
        return f"{name or 'the top level'} ({type(self._parts[name]).__name__})"


def _axes_that_shrink(spec: PermutationSpec, kept: Kept) -> list[Axis]:
    axes = {axis: None for entry in spec.tensors.values() for axis in entry.axes}
    return [axis for axis in axes if kept_positions(axis, kept) is not None]


def _first_difference(before: _Watch, after: _Watch, axes: list[Axis], kept: Kept) -> str:
    """Say which part is the first to return other values for the channels that remain."""
    for key, (title, reference) in before.outputs.items():
        if key not in after.outputs or len(after.outputs[key][1]) != len(reference):
            continue
        for one, other in zip(reference, after.outputs[key][1], strict=True):
            matched = _matching(one, other, axes, kept)
            if matched and min(difference([each], [other]) for each in matched) > TOLERANCE:
                return (
                    f"{title} computes other values for the channels that remain, such as by a mean over all"
                )
    return "its outputs differ from those with zeroed channels"


def _matching(one: Tensor, other: Tensor, axes: list[Axis], kept: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the ways to read `one` at the remaining positions that have the shape of `other`."""
    if one.dim() != other.dim():
        return []
    readings = [one]
    for dim in range(one.dim()):
        if one.shape[dim] == other.shape[dim]:
            continue
        found = []
        for axis in axes:
            positions = kept_positions(axis, kept)
            if positions is not None and axis.size == one.shape[dim] and len(positions) == other.shape[dim]:
                found += [reading.index_select(dim, positions) for reading in readings]
        readings = found
    return readings
