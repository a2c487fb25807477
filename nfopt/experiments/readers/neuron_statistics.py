"""Neuron statistics: our reader for few nets, StatNN's numbers and such of whole neurons, compressed."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nfopt.experiments.question import Question, Tensors
from nfopt.experiments.readers.perceptron import Perceptron, Standardiser
from nfopt.experiments.readers.reader import WeightReader, reader
from nfopt.experiments.readers.statnn import statistics_of, weight_statistics
from nfopt.symmetry import PermutationSpec

HIDDEN_LAYERS = 2


def neuron_products(spec: PermutationSpec, tensors: Tensors) -> list[Float[Tensor, "nets neurons"]]:
    """Return i o and b o of the neurons of every group.

    i, o and b are the root mean square of a neuron's incoming and outgoing weights and its bias, over all
    tensors that hold them. A neuron's products do not depend on its own scale: those of a ReLU neuron stay
    when its incoming weights and bias are multiplied by c and its outgoing ones by 1 / c. Tensors on whose
    axis other neurons lie too are left out.

    Args:
        spec: of the nets.
        tensors: the nets, each [nets, *shape].
    """
    found = []
    for group, atom in spec.groups.items():
        squares: dict[str, list[Tensor]] = {"in": [], "out": [], "bias": []}
        for name, dim in spec.occurrences[group]:
            entry, tensor = spec.tensors[name], tensors[name]
            if entry.axes[dim].size != atom.size:
                continue
            if entry.role == "bias":
                squares["bias"].append(tensor.square().flatten(1))
            elif tensor.ndim > 2:
                kind = "out" if entry.dims[dim : dim + 1] == ("in",) else "in"
                squares[kind].append(tensor.movedim(dim + 1, 1).flatten(2).square().mean(2))
        if not squares["out"]:
            continue
        outgoing = torch.stack(squares["out"]).mean(0).sqrt()
        found += [
            torch.stack(squares[kind]).mean(0).sqrt() * outgoing for kind in ("in", "bias") if squares[kind]
        ]
    return found


class NeuronStatistics(WeightReader):
    """A perceptron over statistics of weights and of neurons, compressed before they are standardised.

    With s the seven statistics of `weight_statistics` of each tensor and of each of `neuron_products`, it
    reads asinh(s / m), m being the median of |s| over the nets of the train side. Zoos over random
    hyper-parameters hold nets whose weights are twenty times those of others; their variances differ by
    hundreds, and standardised as they are they leave all other nets next to each other. Invariant.

    Args:
        question: what to answer, with an invariant head.
        width: of its hidden layers.
        generator: source of the initial weights.
    """

    scale: Tensor

    def __init__(self, question: Question, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.question = question
        zeros = {name: torch.zeros(1, *shape) for name, shape in question.shapes.items()}
        features = self._statistics(zeros).shape[1]
        self.register_buffer("scale", torch.ones(features))
        self.standardiser = Standardiser(features)
        self.layers = Perceptron([features, *[width] * HIDDEN_LAYERS, question.outputs], generator)

    def fit_statistics(self, tensors: Tensors) -> None:
        """Take the median size of each statistic, and mean and standard deviation of what is read of it."""
        found = self._statistics(tensors)
        size = found.abs().median(0).values
        self.scale.copy_(torch.where(size > 0, size, 1))
        self.standardiser.fit((found / self.scale).asinh())

    def forward(self, tensors: Tensors) -> Tensor:
        """Return [nets, outputs]."""
        read = self.standardiser((self._statistics(tensors) / self.scale).asinh())
        return self.layers(read) * self.question.output_scale

    @torch.no_grad()
    def _statistics(self, tensors: Tensors) -> Float[Tensor, "nets statistics"]:
        of_neurons = [statistics_of(each) for each in neuron_products(self.question.spec, tensors)]
        return torch.cat([weight_statistics(self.question, tensors), *of_neurons], dim=1)


@reader("neuron_statistics", "neuron statistics (ours)", heads=("invariant",))
def neuron_statistics(question: Question, width: int, generator: torch.Generator) -> nn.Module:
    """Build the perceptron over statistics of weights and neurons."""
    return NeuronStatistics(question, width, generator)
