"""`edited_tensors`: an editor's rounds of looking and changing, differentiable in the editor's weights."""

from collections.abc import Callable, Mapping
from math import log

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.editing.editor.evidence import CONTEXT, Observed, Targets, observe
from nfopt.editing.editor.forward import NetForward, statistics_names
from nfopt.editing.editor.weight_editor import WeightEditor
from nfopt.symmetry import PermutationSpec


def edited_tensors(
    editor: WeightEditor,
    forward: NetForward,
    spec: PermutationSpec,
    tensors: Mapping[str, Float[Tensor, "..."]],
    targets: Targets | None,
    image_shape: tuple[int, ...] = (),
    after_round: Callable[[int], None] = lambda done: None,
) -> dict[str, Float[Tensor, "..."]]:
    """Return the edited tensors of one net, or of many side by side.

    In each round the nets run on their target images with statistics blended as the round before said; the
    editor proposes a change from what is seen; at the end the blended statistics are put in place. A change's
    effect on what later rounds see is left out of the derivatives (a first-order approximation).

    Args:
        editor: proposes the changes.
        forward: the nets' forward pass.
        spec: their permutation spec.
        tensors: parameters and running statistics by name, each [*nets, *shape].
        targets: target images; None edits from the weights alone, and leaves statistics as they are.
        image_shape: shape of one image, for editors with image operators.
        after_round: told how many rounds are done.
    """
    config = editor.config
    current = dict(tensors)
    offsets: dict[str, Tensor] = {}
    for number in range(config.rounds):
        held = {name: tensor.detach() for name, tensor in current.items()}
        progress = number / max(1, config.rounds - 1)
        if targets is None:
            observed = Observed(context=_unseen(held, progress))
        else:
            observed = observe(
                forward, held, _shares(editor, forward, held, offsets, targets), targets, progress
            )
        proposal = editor(spec, held, observed, image_shape)
        for name, change in proposal.changes.items():
            current[name] = current[name] + change.to(current[name].dtype)
        offsets = proposal.shares
        after_round(number + 1)
    if targets is not None and forward.norms:
        shares = _shares(editor, forward, current, offsets, targets)
        _, norms = forward(current, targets.images, shares)
        for name, value in norms.blended.items():
            if name in current:
                current[name] = value.to(current[name].dtype)
    return current


def _unseen(tensors: Mapping[str, Tensor], progress: float) -> Tensor:
    like = next(iter(tensors.values()))
    context = torch.zeros(CONTEXT, dtype=like.dtype, device=like.device)
    context[3] = progress
    return context


def _shares(
    editor: WeightEditor,
    forward: NetForward,
    tensors: Mapping[str, Tensor],
    offsets: Mapping[str, Tensor],
    targets: Targets,
) -> dict[str, Tensor]:
    """Return each BatchNorm layer's share of target statistics, [*nets, channels]."""
    count = targets.images.shape[1 if forward.many else 0]
    source = editor.config.source_count
    nominal = log(count / source) if source > 0 else float("inf")
    shares = {}
    for norm in forward.norms:
        mean = statistics_names(norm)[0]
        if mean not in tensors:
            continue
        offset = offsets.get(mean, torch.zeros_like(tensors[mean]))
        shares[norm] = torch.sigmoid(nominal + offset.to(tensors[mean].dtype))
    return shares
