"""Readers: networks that read the weights of nets, entered by name, and sized to a number of parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from nfopt.errors import unknown_name
from nfopt.experiments.question import ExperimentError, Question, Tensors
from nfopt.nn.neural_functional import Head
from nfopt.registry import Registry

Preparation: TypeAlias = Literal["none", "aligned", "canonical"]
_MOST_WIDTH = 2**14


class WeightReader(nn.Module):
    """A network over the weights of nets: `forward` maps tensors by name, [nets, *shape], to the answer.

    With an invariant head that is a vector per net, [nets, outputs]; with an equivariant one tensors by name,
    [nets, *shape], and with several outputs [nets, *shape, outputs].
    """

    def fit_statistics(self, tensors: Tensors) -> None:
        """Standardise by the statistics of these nets from now on.

        Args:
            tensors: the nets of the training side alone.
        """
        raise NotImplementedError

    def forward(self, tensors: Tensors) -> Tensor | dict[str, Tensor]:
        """Return what is read off each net."""
        raise NotImplementedError

    def count_parameters(self) -> int:
        """Return the number of parameters that are trained and that nets of its spec can reach."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


Build: TypeAlias = Callable[[Question, int, torch.Generator], nn.Module]


@dataclass(frozen=True)
class Reader:
    """One way to read weights.

    Attributes:
        label: how tables call it.
        build: makes the network for a question, a width and a generator of its initial weights; the network
            has `forward` and `fit_statistics` as `WeightReader` has.
        heads: the heads that it can have.
        prepare: what is done to every net first: nothing; "aligned" to one reference net by renumbering
            neurons; or brought to the "canonical" one of the nets that compute the same (`canonical_siren`,
            `canonical_relu`).
        permutes: whether training renumbers the neurons of every net at random in every step.
        step: widths are multiples of it.
        probes: whether it runs the nets, and so needs `Question.forward`.
    """

    label: str
    build: Build
    heads: tuple[Head, ...] = get_args(Head)
    prepare: Preparation = "none"
    permutes: bool = False
    step: int = 1
    probes: bool = False

    def make(self, question: Question, width: int, seed: int = 0) -> Any:
        """Return the network of `width` channels, its initial weights drawn from `seed`.

        Raises:
            ExperimentError: the reader cannot answer the question.
        """
        self.check(question)
        return self.build(question, width, torch.Generator().manual_seed(seed))

    def check(self, question: Question) -> None:
        """Raise ExperimentError when the reader cannot answer the question."""
        if question.head not in self.heads:
            raise ExperimentError(
                f"{self.label} has no {question.head} head: it cannot return "
                f"{'tensors of the shapes of the nets' if question.head == 'equivariant' else 'a vector'}. "
                "Leave it out of this experiment."
            )
        if self.probes and question.forward is None:
            raise ExperimentError(
                f"{self.label} runs the nets, but this zoo does not say what they compute. Leave it out."
            )

    def width_near(self, question: Question, parameters: int) -> int:
        """Return the width, a multiple of `step`, whose number of parameters is nearest to `parameters`.

        Raises:
            ExperimentError: the reader cannot answer the question.
        """

        def count(units: int) -> int:
            return parameter_count(self.make(question, units * self.step))

        low, high = 1, 2
        while count(high) < parameters and high * self.step < _MOST_WIDTH:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if count(middle) < parameters else (low, middle)
        return self.step * min((low, high), key=lambda units: abs(count(units) - parameters))


READERS: Registry[Reader] = Registry("reader")


def reader(name: str, label: str, **options: Any) -> Callable[[Build], Build]:
    """Return a decorator that enters a builder as the reader `name`; options are `Reader`'s attributes."""

    def enter(build: Build) -> Build:
        READERS.register(name)(Reader(label, build, **options))
        return build

    return enter


def parameter_count(network: nn.Module) -> int:
    """Return the number of parameters of a reader's network that are trained and can be reached."""
    if isinstance(network, WeightReader):
        return network.count_parameters()
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def check_readers(names: list[str], question: Question) -> None:
    """Raise UnknownNameError or ExperimentError for the first of `names` that cannot answer the question."""
    for name in names:
        if name not in READERS:
            raise unknown_name("reader", name, READERS)
        READERS[name].check(question)
