"""Magnitudes after training: the lottery ticket, in one shot or by iteration with rewinding."""

from collections.abc import Mapping

from torch import Tensor

from nfopt.errors import PruningError
from nfopt.pruning.scores.score import ScoreContext, score


@score("imp", needs=("train",))
def imp(context: ScoreContext) -> Mapping[str, Tensor]:
    """|w| after `train` has trained the model from its present weights under the mask so far.

    With one round this is one-shot magnitude pruning after training. With more, every round starts from the
    weights that the model had when `prune` was called: iterative pruning with rewinding to that point. For
    rewinding to step k, call `prune` on a model that has been trained for k steps.
    Source: Frankle and Carbin (arXiv:1803.03635), section 1; Frankle et al. (arXiv:1912.05671), algorithm 1.
    """
    assert context.train is not None
    context.train(context.model, context.kept)
    trained = {name: parameter.detach().abs() for name, parameter in context.parameters.items()}
    for name, values in trained.items():
        if not bool(values.isfinite().all()):
            raise PruningError(
                f"training under the mask left {name} with values that are no finite numbers. "
                "Lower the learning rate of the training function."
            )
    return trained
