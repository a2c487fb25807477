"""Learned probes: run every net on inputs that are learned, and read its outputs."""

import torch
from torch import Tensor, nn

from nfopt.experiments.question import Question, Tensors
from nfopt.experiments.readers.perceptron import Perceptron, Standardiser
from nfopt.experiments.readers.reader import WeightReader, reader

PROBES = 64
HIDDEN_LAYERS = 2


class Probes(WeightReader):
    """A perceptron over what a net answers to learned inputs (probing, as in ProbeGen, arXiv 2410.10811).

    The inputs are free parameters, without that paper's generator. It runs the nets instead of reading their
    weights: whatever two nets share that compute the same is seen at once, so it is no rival to networks over
    weights but a bound of what can be read off the function.

    Args:
        question: what to answer, with an invariant head and `forward`.
        width: of its hidden layers.
        generator: source of the initial weights and inputs, which are uniform in -1 .. 1.
    """

    def __init__(self, question: Question, width: int, generator: torch.Generator) -> None:
        super().__init__()
        assert question.forward is not None
        self.question, self.run = question, question.forward
        self.inputs = nn.Parameter(2 * torch.rand(PROBES, question.inputs, generator=generator) - 1)
        nets = {name: torch.zeros(1, *shape) for name, shape in question.shapes.items()}
        values = self.run(nets, self.inputs.detach()).flatten(1).shape[1]
        self.standardiser = Standardiser(values)
        self.layers = Perceptron([values, *[width] * HIDDEN_LAYERS, question.outputs], generator)

    def fit_statistics(self, tensors: Tensors) -> None:
        """Take mean and standard deviation of each answer, at the inputs as they are now."""
        with torch.no_grad():
            self.standardiser.fit(self.run(tensors, self.inputs).flatten(1))

    def forward(self, tensors: Tensors) -> Tensor:
        """Return [nets, outputs]."""
        seen = self.standardiser(self.run(tensors, self.inputs).flatten(1))
        return self.layers(seen) * self.question.output_scale


@reader("probes", "learned probes", heads=("invariant",), probes=True)
def probes(question: Question, width: int, generator: torch.Generator) -> Probes:
    """Build the perceptron over answers to learned inputs."""
    return Probes(question, width, generator)
