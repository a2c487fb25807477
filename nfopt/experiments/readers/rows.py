"""Weight rows: a net as a set of rows, one per output of a weight tensor and one per vector."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.experiments.question import Question, Tensors, flatten


@dataclass(frozen=True)
class WeightRows:
    """How the tensors of a question are cut into rows.

    A tensor of two or more axes gives a row per index of its first axis (a neuron's incoming weights), one
    of a single axis is a row by itself.

    Attributes:
        question: the question.
        shapes: for each tensor the number of rows and their width.
    """

    question: Question
    shapes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, question: Question) -> "WeightRows":
        """Return the rows of a question's tensors."""
        shapes = question.shapes.values()
        return cls(question, tuple((s[0], prod(s[1:])) if len(s) > 1 else (1, prod(s)) for s in shapes))

    @property
    def count(self) -> int:
        """Number of rows of a net."""
        return sum(rows for rows, _ in self.shapes)

    @property
    def widest(self) -> int:
        """Width of the widest row."""
        return max(width for _, width in self.shapes)

    def split(self, tensors: Tensors) -> list[Float[Tensor, "nets rows width"]]:
        """Return the rows of each tensor; raises ExperimentError when the tensors are not the question's."""
        parts = flatten(self.question, tensors).split([r * w for r, w in self.shapes], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def padded(self, tensors: Tensors) -> Float[Tensor, "nets rows width"]:
        """Return all rows below each other, with zeros behind those that are not the widest."""
        return torch.cat(
            [
                torch.nn.functional.pad(part, (0, self.widest - part.shape[-1]))
                for part in self.split(tensors)
            ],
            dim=1,
        )

    def join(self, rows: Sequence[Float[Tensor, "nets rows width"]]) -> Float[Tensor, "nets weights"]:
        """Return the rows of each tensor as the vector that `split` cut."""
        return torch.cat([part.flatten(1) for part in rows], dim=1)
