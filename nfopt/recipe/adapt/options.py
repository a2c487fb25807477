"""What recipes say about edits: ordered steps of methods, domains, the gate; shared by jobs that adapt."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field, JsonValue, TypeAdapter, ValidationError, field_validator
from torch import Tensor, nn

from nfopt.data import Split
from nfopt.editing import METHODS, Domain, Edit, Gate, Method, adapt, compose
from nfopt.editing.inputs import check_batchnorm
from nfopt.errors import NfoptError, unknown_name
from nfopt.progress import ProgressCallback, silent
from nfopt.recipe.records import record
from nfopt.recipe.strict import Strict

# Its deltas come from a zoo of networks, which no recipe of one network has.
NOT_IN_RECIPES = frozenset({"mean-delta"})


class StepOptions(Strict):
    """One step of an edit.

    Attributes:
        method: a name in `nfopt.editing.METHODS`.
        options: its options.
    """

    method: str
    options: dict[str, JsonValue] = Field(default={}, validate_default=True)

    @field_validator("method")
    @classmethod
    def _is_known(cls, method: str) -> str:
        known = [name for name in METHODS if name not in NOT_IN_RECIPES]
        if method not in known:
            raise ValueError(str(unknown_name("edit method", method, known)))
        return method

    @field_validator("options")
    @classmethod
    def _fits(cls, options: Mapping[str, Any], info: Any) -> Mapping[str, Any]:
        if "method" in info.data:
            _leaf(info.data["method"], options)
        return options

    def build(self) -> Method:
        """Return the method with its options."""
        return _leaf(self.method, self.options)


def _leaf(method: str, options: Mapping[str, Any]) -> Method:
    leaf = METHODS[method]
    known = getattr(leaf, "__dataclass_fields__", {})
    try:
        for name in options:
            if name not in known:
                raise unknown_name("option", name, known, where=f"the method {method!r}")
        return TypeAdapter(leaf).validate_python(dict(options))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}, not {first['input']!r}."
        ) from error
    except NfoptError as error:
        raise ValueError(str(error)) from error


def _known_domain(text: str) -> str:
    try:
        return str(Domain.parse(text))
    except NfoptError as error:
        raise ValueError(str(error)) from error


DomainName = Annotated[str, AfterValidator(_known_domain)]
GateOptions = Annotated[Gate, record(Gate)]


def _some(steps: tuple[StepOptions, ...]) -> tuple[StepOptions, ...]:
    if not steps:
        raise ValueError("needs at least one step.")
    return steps


Steps = Annotated[tuple[StepOptions, ...], AfterValidator(_some)]


def edit_in_steps(
    model: nn.Module,
    steps: Sequence[StepOptions],
    target: Tensor,
    *,
    labels: Tensor | None,
    source: Split | None,
    held_out: Split | None,
    gate: Gate,
    seed: int,
    progress: ProgressCallback = silent,
) -> Edit:
    """Return the one edit of all steps, each made for the result of those before it; `model` ends as it was.

    A step that the gate refuses is still part of the edit, which then is refused as a whole.
    """
    edits: list[Edit] = []
    try:
        for step in steps:
            method = step.build()
            given = labels if "labels" in method.needs else None
            edit = adapt(
                model,
                target,
                method,
                labels=given,
                source=source,
                held_out=held_out,
                gate=gate,
                seed=seed,
                progress=progress,
            )
            edit.apply(model, force=True)
            edits.append(edit)
    finally:
        for edit in reversed(edits):
            edit.revert(model)
    return compose(*edits)


def touched(model: nn.Module, step: StepOptions, example: Tensor) -> str:
    """Return how many tensors and elements of a model a step may change, and the first of their names.

    Raises:
        EditingError: the step needs BatchNorm and there is none, or a pattern of it matches nothing.
    """
    state = model.state_dict()
    method = step.build()
    check_batchnorm(method, model)
    with torch.no_grad():
        names = method.touches(model, example)
    elements = sum(state[name].numel() for name in names)
    return f"{len(names)} of {len(state)} tensors, {elements:,} numbers" + (
        f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
    )


def needs_labels(steps: Sequence[StepOptions]) -> bool:
    """Whether a step learns from labels."""
    return any("labels" in step.build().needs for step in steps)
