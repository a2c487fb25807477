"""Question: what an experiment asks of a network that reads the weights of nets."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Protocol, TypeAlias, get_args

import torch
from torch import Tensor

from nfopt.errors import NfoptError, unknown_name
from nfopt.nn.neural_functional import Head
from nfopt.symmetry import PermutationSpec

Tensors: TypeAlias = Mapping[str, Tensor]
"""The weights of a batch of nets of one spec, by name, each [nets, *shape]."""


class ExperimentError(NfoptError):
    """An experiment over a zoo is asked for something that it, or the zoo, cannot give."""


class Forward(Protocol):
    """What the nets of a zoo compute, all at once."""

    def __call__(self, tensors: Tensors, inputs: Tensor) -> Tensor:
        """Return the outputs [nets, points, outputs] of each net at `inputs` [points, inputs]."""
        ...


@dataclass(frozen=True)
class Question:
    """What is to be read off the nets of one spec.

    Attributes:
        spec: the permutation spec of the nets.
        head: "invariant" for a vector per net, "equivariant" for tensors of the nets' shapes (an edit).
        outputs: length of the vector; with an equivariant head the number of edits.
        output_scale: factor on what is returned; .01 for edits, which then start small (Zhou et al. 2023).
        forward: what the nets compute, for readers that probe them; None where nobody knows it.
        inputs: number of inputs of the nets, for readers that probe them.

    Raises:
        ExperimentError: the spec has no tensor, or a number makes no sense.
        UnknownNameError: there is no such head.
    """

    spec: PermutationSpec
    head: Head = "invariant"
    outputs: int = 1
    output_scale: float = 1.0
    forward: Forward | None = None
    inputs: int = 0

    def __post_init__(self) -> None:
        if self.head not in get_args(Head):
            raise unknown_name("head", self.head, get_args(Head))
        if not self.spec.tensors:
            raise ExperimentError("the spec has no tensor: there is nothing to read.")
        if self.outputs < 1:
            raise ExperimentError(f"outputs is {self.outputs!r}; it must be 1 or more.")
        if not isfinite(self.output_scale):
            raise ExperimentError(f"output_scale is {self.output_scale!r}; it must be a finite number.")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor by name, in the spec's order."""
        return {name: entry.shape for name, entry in self.spec.tensors.items()}


def flatten(question: Question, tensors: Tensors) -> Tensor:
    """Return the weights of each net as one vector: [nets, weights].

    Raises:
        ExperimentError: a tensor is missing, or has another shape than the spec gives it.
    """
    parts = []
    for name, shape in question.shapes.items():
        tensor = tensors.get(name)
        if tensor is None or tuple(tensor.shape[1:]) != shape:
            given = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
            raise ExperimentError(
                f"{name} is {given}, but the spec has it as [nets, {', '.join(map(str, shape))}]. "
                "Is this another architecture's zoo?"
            )
        parts.append(tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None])
    return torch.cat(parts, dim=1)


def unflatten(question: Question, flat: Tensor) -> dict[str, Tensor]:
    """Return the tensors of nets whose weights are the rows of `flat`: the inverse of `flatten`.

    Further dimensions of `flat`, [nets, weights, ...], stay the last ones.
    """
    counts = [int(torch.Size(shape).numel()) for shape in question.shapes.values()]
    parts = flat.split(counts, dim=1)
    return {
        name: part.unflatten(1, shape) if shape else part[:, 0]
        for (name, shape), part in zip(question.shapes.items(), parts, strict=True)
    }
