"""`adapt`: the one call from a model and target images to an Edit."""

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from nfopt.data import Split
from nfopt.editing.edit import Edit
from nfopt.editing.evidence import Evidence, as_pair, gather, scores_of
from nfopt.editing.gate import Gate
from nfopt.editing.history import EditStep
from nfopt.editing.inputs import FORWARD_ERRORS, check_inputs, check_labels, check_needs, digest_of_set
from nfopt.editing.methods import METHODS, Method, Task
from nfopt.editing.model_state import state_of
from nfopt.errors import EditingError, unknown_name
from nfopt.progress import ProgressCallback, silent
from nfopt.symmetry import unwrap


def adapt(
    model: nn.Module,
    target: Tensor,
    method: str | Method = "bn",
    *,
    options: Mapping[str, Any] | None = None,
    labels: Int[Tensor, " images"] | None = None,
    source: Split | None = None,
    held_out: Split | None = None,
    gate: Gate | None = Gate(),  # noqa: B008 (frozen)
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> Edit:
    """Return an edit of a trained model towards target images. The model is not changed.

    `edit.apply(model)` writes it into the model, unless the gate refused it; `edit.revert(model)` takes it
    back, bit for bit.

    Args:
        model: a classifier, images to logits, on any device.
        target: images of the new domain, prepared as the model takes them, at least one; 16 to 256 are usual.
        method: a name in `METHODS`, or a Method with its options.
        options: of a method that is given by its name.
        labels: the class of each target image, -1 where it is not known.
        source: kept images of the source domain with their labels, for the gate and for methods that use it.
        held_out: target images with labels that only the gate sees. Without them it takes `labels`, unless
            the method is trained on those.
        gate: decides whether the edit is accepted; None for no gate.
        seed: of everything random.
        progress: hears of the method's steps.

    Raises:
        UnknownNameError: there is no such method or option.
        EditingError: images, labels, model and method do not go together, or the method diverged.
    """
    chosen = _method(method, options)
    check_inputs(model, target, source, held_out)
    check_needs(chosen, model, labels)
    classes = _class_count(model, target)
    for name, given, count in (
        ("labels", labels, len(target)),
        ("labels of source", None if source is None else source.labels, None),
        ("labels of held_out", None if held_out is None else held_out.labels, None),
    ):
        if given is not None:
            check_labels(name, given, classes, count, trained_on=name == "labels" and chosen.trains_on_labels)
    base, edited = _copy(model), _copy(model)
    device = next(iter(state_of(model).values())).device
    target = target.to(device)
    labels = None if labels is None else labels.to(device).long()
    source = None if source is None else source.to(device)
    held_out = None if held_out is None else held_out.to(device)
    task = Task(target, labels, source, torch.Generator().manual_seed(seed), progress)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        notes = _fitted(chosen, edited, task)
    before, after = state_of(base), state_of(edited)
    sets: dict[str, tuple[Tensor, Tensor | None]] = {"target": (target, labels)}
    for name, pair in (("source", as_pair(source)), ("held_out", as_pair(held_out))):
        if pair is not None:
            sets[name] = pair
    if held_out is None and labels is not None and not chosen.trains_on_labels:
        known = labels >= 0
        sets["held_out"] = (target[known], labels[known])
    evidence = gather(base, edited, sets, before, after)
    step = _step(chosen, evidence, gate, sets, notes, seed)
    edit = Edit.between(before, after, (), type(unwrap(model)).__name__)
    step = replace(step, base=edit.base_digest, result=edit.result_digest)
    return replace(edit, history=(step,))


def _method(method: str | Method, options: Mapping[str, Any] | None) -> Method:
    if isinstance(method, Method):
        if options:
            raise EditingError("options go with the name of a method; this one has its own already.")
        return method
    leaf = METHODS[method]
    known = getattr(leaf, "__dataclass_fields__", {})
    for name in options or {}:
        if name not in known:
            raise unknown_name("option", name, known, where=f"the method {method!r}")
    return leaf(**(options or {}))


def _copy(model: nn.Module) -> nn.Module:
    copied = copy.deepcopy(unwrap(model)).eval()
    for parameter in copied.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    return copied


def _class_count(model: nn.Module, target: Tensor) -> int:
    """Return the number of classes; raises EditingError unless the model turns these images into logits."""
    probe = _copy(model)
    device = next(iter(state_of(model).values())).device
    shape = "x".join(map(str, target.shape[1:]))
    try:
        with torch.no_grad():
            logits = probe(target[:2].to(device))
    except FORWARD_ERRORS as error:
        first_line = str(error).partition("\n")[0]
        raise EditingError(
            f"{type(unwrap(model)).__name__} does not run on target images of {shape}: "
            f"{type(error).__name__}: {first_line}. Prepare them as for its training: size, channels, type."
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise EditingError(
            f"{type(unwrap(model)).__name__} answers two images with {found}; a classifier answers with "
            "one row of logits for each."
        )
    return logits.shape[1]


def _fitted(chosen: Method, edited: nn.Module, task: Task) -> Mapping[str, Any]:
    try:
        notes = chosen.fit(edited, task)
    except FORWARD_ERRORS as error:
        first_line = str(error).partition("\n")[0]
        raise EditingError(
            f"{chosen.name} cannot work with these {len(task.images)} target images: {first_line}."
        ) from error
    edited.eval()
    return notes


def _step(
    chosen: Method,
    evidence: Evidence,
    gate: Gate | None,
    sets: Mapping[str, tuple[Tensor, Tensor | None]],
    notes: Mapping[str, Any],
    seed: int,
) -> EditStep:
    images, labels = sets["target"]
    values = {
        "options": {**chosen.options(), "seed": seed},
        "data": {name: digest_of_set(*pair) for name, pair in sets.items()},
        "notes": dict(notes),
    }
    # As they come back from a file, so that an edit equals the one that is loaded again.
    plain = json.loads(json.dumps(values))
    return EditStep(
        chosen.name,
        plain["options"],
        base="",
        result="",
        images=len(images),
        labels=0 if labels is None else int((labels >= 0).sum()),
        data=plain["data"],
        before=scores_of(evidence.before),
        after=scores_of(evidence.after),
        changes=dict(evidence.changes),
        checks=() if gate is None else gate.judge(evidence),
        notes=plain["notes"],
    )
