"""`prune`: the one call from a model to a PruningMask."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from nfopt.errors import NfoptWarning, PruningError, TraceError
from nfopt.progress import Progress, ProgressCallback, silent
from nfopt.pruning.mask import PruningMask, prunable_parameters
from nfopt.pruning.scores import (
    SCORES,
    Batch,
    LossFunction,
    Score,
    ScoreContext,
    TrainingFunction,
    check_batches,
)
from nfopt.pruning.select import check_density, check_scope, scope_density, select
from nfopt.pruning.targets import Targets, find_targets
from nfopt.symmetry import PermutationSpec, trace_permutation_spec, unwrap


def prune(
    model: nn.Module,
    density: float | None = None,
    score: str | Score = "magnitude",
    scope: str = "global",
    *,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    batches: Sequence[Batch] = (),
    loss: LossFunction = functional.cross_entropy,
    example_inputs: Any = None,
    spec: PermutationSpec | None = None,
    train: TrainingFunction | None = None,
    rounds: int | None = None,
    start: PruningMask | None = None,
    seed: int = 0,
    on_empty_layer: Literal["warn", "error", "allow"] = "warn",
    progress: ProgressCallback = silent,
) -> PruningMask:
    """Return the mask that keeps the given fraction of a model's weights. The model is not changed.

    Printed, the mask says what is kept of every tensor, and what each pattern matched.

    Args:
        model: any module. Scores work on copies, in the mode (training or evaluation) that it is in.
        density: kept fraction in [0, 1] of the weights that are pruned; may be left out with scope "N:M".
        score: a name in `SCORES`, or a Score of one's own.
        scope: "global", "layer", "erk" or "N:M", see `select`.
        include: patterns of the parameters to prune; None for all linear and convolution weights.
        exclude: patterns of parameters that stay whole; they do not count towards the density.
        batches: pairs of inputs (a tensor, a tuple or a dict of arguments) and targets.
        loss: mean loss from outputs and targets.
        example_inputs: an input for scores that need no data.
        spec: the model's symmetry, for scores that use it.
        train: `train(model, kept)` trains `model` in place, keeping at zero what the boolean tensors `kept`
            mark False (see `keep_masked`); for "imp".
        rounds: rounds of scoring and pruning, each on what is left, with densities d^(1/n), d^(2/n), ..., d
            (Tanaka et al. 2020, algorithm 1); None for the score's own number.
        start: a mask of the same tensors: what it prunes stays pruned.
        seed: of everything random.
        on_empty_layer: what happens when a tensor keeps nothing: an NfoptWarning, a PruningError, or nothing.
        progress: hears of every round.

    Raises:
        UnknownNameError: there is no such score or scope.
        PruningError: a number is out of range, a pattern matches nothing, the score lacks what it needs,
            batches are no pairs, its values are not finite, or a layer is empty and that is an error.
    """
    chosen = _score_of(score)
    check_scope(scope)
    if on_empty_layer not in ("warn", "error", "allow"):
        raise PruningError(f"on_empty_layer is {on_empty_layer!r}; give warn, error or allow.")
    target_density = _density(density, scope)
    rounds = _rounds(chosen, rounds, scope)
    targets = find_targets(model, include=include, exclude=exclude)
    context = _context(chosen, model, batches, loss, example_inputs, spec, train, seed)
    context = replace(context, density=target_density)
    kept = _start(model, targets, start)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for done in range(rounds):
            progress(Progress(f"score {chosen.name}", done, rounds))
            kept = _one_round(chosen, context, kept, target_density ** ((done + 1) / rounds), scope)
    progress(Progress(f"score {chosen.name}", rounds, rounds))
    origin = {
        "score": chosen.name,
        "scope": scope,
        "density": f"{target_density:g}",
        "rounds": str(rounds),
        "seed": str(seed),
    }
    if include is not None or exclude:
        origin["patterns"] = str(targets)
    mask = PruningMask.for_model(model, kept, origin)
    _report_empty(mask, on_empty_layer)
    return mask


def score_once(
    model: nn.Module,
    names: Sequence[str],
    score: str | Score = "magnitude",
    *,
    batches: Sequence[Batch] = (),
    loss: LossFunction = functional.cross_entropy,
    example_inputs: Any = None,
    spec: PermutationSpec | None = None,
    train: TrainingFunction | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return one round of a score for the parameters `names` of a model, which is not changed.

    The arguments are those of `prune`.

    Raises:
        UnknownNameError: there is no such score.
        PruningError: the score lacks what it needs.
    """
    chosen = _score_of(score)
    parameters = prunable_parameters(model)
    kept = {name: torch.ones(tuple(parameters[name].shape), dtype=torch.bool) for name in names}
    context = _context(chosen, model, batches, loss, example_inputs, spec, train, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _scored(chosen, context, kept)


def _score_of(score: str | Score) -> Score:
    return SCORES[score] if isinstance(score, str) else score


def _rounds(chosen: Score, rounds: int | None, scope: str) -> int:
    rounds = chosen.rounds if rounds is None else rounds
    if rounds < 1:
        raise PruningError(f"rounds is {rounds}; at least one round of scoring is needed.")
    # The groups of N:M have no densities on the way.
    return 1 if scope_density(scope) is not None else rounds


def _context(
    chosen: Score,
    model: nn.Module,
    batches: Sequence[Batch],
    loss: LossFunction,
    example_inputs: Any,
    spec: PermutationSpec | None,
    train: TrainingFunction | None,
    seed: int,
) -> ScoreContext:
    """Return what a score is given, checked to be all that it needs, with the symmetry if it reads that."""
    check_batches(batches)
    if example_inputs is None and batches:
        example_inputs = batches[0][0]
    draw = torch.Generator().manual_seed(seed)
    context = ScoreContext(model, {}, {}, draw, batches, loss, example_inputs, spec, train)
    chosen.check_supplied(context)
    return _with_symmetry(chosen, context)


def _density(density: float | None, scope: str) -> float:
    fixed = scope_density(scope)
    if density is None:
        if fixed is None:
            raise PruningError(f"scope {scope!r} needs density=..., the kept fraction between 0 and 1.")
        return fixed
    check_density(density)
    if fixed is not None and abs(density - fixed) > 1e-9:
        raise PruningError(f"scope {scope!r} keeps {fixed:g}, not density={density:g}. Leave density out.")
    return density


def _start(model: nn.Module, targets: Targets, start: PruningMask | None) -> dict[str, Tensor]:
    parameters = prunable_parameters(model)
    if start is None:
        shapes = {name: tuple(parameters[name].shape) for name in targets.names}
        return {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
    start.check_fits(model)
    if set(start.kept) != set(targets.names):
        differing = ", ".join(sorted(set(start.kept) ^ set(targets.names))[:6])
        raise PruningError(
            f"the mask to start from and this call do not prune the same tensors: {differing}. "
            "Give the same include and exclude as for that mask."
        )
    return {name: start.kept[name] for name in targets.names}


def _with_symmetry(chosen: Score, context: ScoreContext) -> ScoreContext:
    """Return the context with the model's symmetry in it, derived where a score asks for that."""
    if not chosen.traces or context.spec is not None:
        return context
    model = _copy_with_mask(context.model, {})
    try:
        return replace(context, spec=trace_permutation_spec(model, context.example_inputs))
    except TraceError as error:
        raise PruningError(
            f"the score {chosen.name!r} reads the model's symmetry, which could not be derived: {error} "
            "Give spec=..., PermutationSpec.uncoupled({name: shape, ...}) for none."
        ) from error


def _scored(chosen: Score, context: ScoreContext, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the score of every element of a masked copy, checked to be what a score must be."""
    model = _copy_with_mask(context.model, kept)
    parameters = prunable_parameters(model)
    scored = {name: parameters[name] for name in kept}
    # Training between rounds may have left batch statistics and gradients; every round has its own copy.
    worth = chosen.compute(replace(context, model=model, parameters=scored, kept=kept))
    if worth.keys() != kept.keys():
        raise PruningError(
            f"the score {chosen.name!r} scored {sorted(worth)[:6]}, not the {len(kept)} tensors it was given."
        )
    checked = {}
    for name, mask in kept.items():
        values = worth[name].detach().cpu()
        values = values if values.is_floating_point() else values.double()
        if values.shape != mask.shape:
            raise PruningError(
                f"the score {chosen.name!r} gave {name} values of shape {tuple(values.shape)}, "
                f"not {tuple(mask.shape)}."
            )
        checked[name] = values
    return checked


def _one_round(
    chosen: Score, context: ScoreContext, kept: Mapping[str, Tensor], density: float, scope: str
) -> dict[str, Tensor]:
    """Return what is kept after one round of scoring the weights that `kept` leaves."""
    worth = _scored(chosen, context, kept)
    ranked = {name: worth[name].masked_fill(~mask, float("-inf")) for name, mask in kept.items()}
    chosen_now = select(ranked, density, scope)
    return {name: chosen_now[name] & kept[name] for name in kept}


def _copy_with_mask(model: nn.Module, kept: Mapping[str, Tensor]) -> nn.Module:
    copied = copy.deepcopy(unwrap(model))
    parameters = prunable_parameters(copied)
    with torch.no_grad():
        for name, mask in kept.items():
            parameters[name].mul_(mask.to(parameters[name].device))
    for parameter in parameters.values():
        parameter.requires_grad_(parameter.is_floating_point())
        parameter.grad = None
    return copied


def _report_empty(mask: PruningMask, on_empty_layer: str) -> None:
    empty = mask.empty_layers
    if not empty or on_empty_layer == "allow":
        return
    shown = ", ".join(empty[:6]) + (f", ... ({len(empty)} in all)" if len(empty) > 6 else "")
    message = (
        f"nothing is kept of {shown} at density {mask.density:.3g}: no signal passes, and the model cannot "
        'learn (layer collapse). Use scope="layer" or "erk", score="synflow", more rounds, a higher density, '
        "or exclude these."
    )
    if on_empty_layer == "error":
        raise PruningError(message)
    warnings.warn(message, NfoptWarning, stacklevel=3)
