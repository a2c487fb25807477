"""What a pruning score is: a function from a model and its data to the worth of every weight."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nfopt.errors import PruningError
from nfopt.registry import Registry
from nfopt.symmetry import PermutationSpec

Batch = tuple[Any, Tensor]
LossFunction = Callable[[Tensor, Tensor], Tensor]
TrainingFunction = Callable[[nn.Module, Mapping[str, Tensor]], None]


@dataclass(frozen=True)
class ScoreContext:
    """What a score sees. The model is a copy of its own, which it may change and need not put back.

    Attributes:
        model: the copy, with the weights that are masked so far at zero; in the mode (training or
            evaluation) that the user's model is in.
        parameters: the copy's parameters that are scored, by name.
        kept: for each of them what is kept so far, as booleans; all True in the first round.
        generator: for everything random.
        batches: pairs of inputs and targets; empty where none were given.
        loss: from outputs and targets to the mean loss.
        example_inputs: one input for scores without data; that of the first batch if there is one.
        spec: the model's permutation symmetry, for scores that use it; None where it was not given.
        train: trains a model in place under a mask, for scores of trained weights; None where not given.
        density: kept fraction that is aimed at in the end; None where scores are asked for and no mask.
    """

    model: nn.Module
    parameters: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]
    generator: torch.Generator
    batches: Sequence[Batch] = ()
    loss: LossFunction = functional.cross_entropy
    example_inputs: Any = None
    spec: PermutationSpec | None = None
    train: TrainingFunction | None = None
    density: float | None = None

    def gradients(self, batch: Batch, *, create_graph: bool = False) -> dict[str, Tensor]:
        """Return the gradient of the batch's loss by the scored parameters, zero where one takes no part."""
        found = torch.autograd.grad(
            self.batch_loss(batch),
            list(self.parameters.values()),
            create_graph=create_graph,
            allow_unused=True,
        )
        return {
            name: torch.zeros_like(parameter) if gradient is None else gradient
            for (name, parameter), gradient in zip(self.parameters.items(), found, strict=True)
        }

    def batch_loss(self, batch: Batch) -> Tensor:
        """Return the loss of one batch."""
        inputs, targets = batch
        return self.loss(forward(self.model, inputs), targets)


@dataclass(frozen=True)
class Score:
    """A pruning score.

    Attributes:
        name: its name.
        compute: from the context to the worth of every element: the highest are kept.
        rounds: rounds of scoring and pruning that its paper asks for; the density falls geometrically.
        needs: which of "batches", "train" and "spec" it cannot do without.
        needs_example: whether it needs an input at least, if no batches.
        traces: whether the model's symmetry is derived for it where it was not given.
    """

    name: str
    compute: Callable[[ScoreContext], Mapping[str, Tensor]]
    rounds: int = 1
    needs: frozenset[str] = field(default_factory=frozenset)
    needs_example: bool = False
    traces: bool = False

    def check_supplied(self, context: ScoreContext) -> None:
        """Raise PruningError when something that the score needs was not given."""
        given = {
            "batches": bool(context.batches),
            "train": context.train is not None,
            "spec": context.spec is not None,
        }
        for need in sorted(self.needs):
            if not given[need]:
                raise PruningError(
                    f"the score {self.name!r} needs {need}=...: {_WHAT[need]}. Scores that need nothing: "
                    "magnitude, random."
                )
        if self.needs_example and context.example_inputs is None:
            raise PruningError(f"the score {self.name!r} needs example_inputs=..., one input of the model.")


def check_batches(batches: Any) -> None:
    """Raise PruningError unless `batches` is a sequence of pairs."""
    if not isinstance(batches, Sequence):
        raise PruningError(
            f"batches is a list of pairs (inputs, targets), not a {type(batches).__name__}. Of a DataLoader "
            "take some: list(itertools.islice(loader, 10))."
        )
    for batch in batches:
        if not (isinstance(batch, tuple | list) and len(batch) == 2):
            given = (
                f"length {len(batch)}" if isinstance(batch, tuple | list) else f"type {type(batch).__name__}"
            )
            raise PruningError(
                f"batches is a list of pairs (inputs, targets); one of what was given has {given}. A single "
                "pair goes into a list: batches=[(inputs, targets)]."
            )


_WHAT = {
    "batches": "a list of pairs (inputs, targets)",
    "train": "a function that trains a model in place under a mask",
    "spec": "the model's symmetry, trace_permutation_spec(model, example_inputs)",
}
SCORES: Registry[Score] = Registry("pruning score")


def score(
    name: str,
    *,
    rounds: int = 1,
    needs: Sequence[str] = (),
    needs_example: bool = False,
    traces: bool = False,
) -> Callable[
    [Callable[[ScoreContext], Mapping[str, Tensor]]], Callable[[ScoreContext], Mapping[str, Tensor]]
]:
    """Return a decorator that enters a function as the score `name`.

    Raises:
        DuplicateNameError: there is a score of that name.
    """

    def enter(
        compute: Callable[[ScoreContext], Mapping[str, Tensor]],
    ) -> Callable[[ScoreContext], Mapping[str, Tensor]]:
        SCORES.register(name)(Score(name, compute, rounds, frozenset(needs), needs_example, traces))
        return compute

    return enter


def forward(model: Callable[..., Any], inputs: Any) -> Any:
    """Return the model's output on a tensor, a tuple of positional or a dict of keyword arguments."""
    if isinstance(inputs, tuple):
        return model(*inputs)
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(inputs)
