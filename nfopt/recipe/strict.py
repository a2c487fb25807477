"""Strict records: pydantic models that forbid unknown keys and say which key was probably meant."""

import difflib
from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from nfopt.errors import unknown_name
from nfopt.recipe.source import Document, Fault, KeyPath, dotted

Count = Annotated[int, Field(strict=True, ge=1)]
Index = Annotated[int, Field(strict=True, ge=0)]
Positive = Annotated[float, Field(strict=True, gt=0)]
NonNegative = Annotated[float, Field(strict=True, ge=0)]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1)]


def _distinct_seeds(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("must be distinct: a seed given twice is no second sample.")
    return seeds


Seeds = Annotated[tuple[Index, ...], Field(min_length=1), AfterValidator(_distinct_seeds)]


def all_known(kind: str, known: Collection[str]) -> AfterValidator:
    """Return the validator of a tuple of names of a `kind`: each must be in `known`."""

    def check(names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in known:
                raise ValueError(str(unknown_name(kind, name, known)))
        return names

    return AfterValidator(check)


class Strict(BaseModel):
    """A frozen record whose unknown keys are errors with a did-you-mean; all faults are found at once."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @model_validator(mode="wrap")
    @classmethod
    def _say_what_was_meant(cls, data: Any, handler: ModelWrapValidatorHandler["Strict"]) -> "Strict":
        try:
            return handler(data)
        except ValidationError as error:
            raise ValidationError.from_exception_data(
                cls.__name__, [_explained(cls, details) for details in error.errors(include_url=False)]
            ) from None


def _explained(model: type[Strict], error: Any) -> InitErrorDetails:
    """Return one pydantic error again, its message in our words; unknown keys of `model` get the nearest."""
    location, message = error["loc"], error["msg"]
    if error["type"] == "extra_forbidden" and len(location) == 1:
        message = unknown_key(str(location[0]), list(model.model_fields))
    elif error["type"] == "missing":
        message = "is missing."
    elif error["type"] not in ("fault", "value_error"):
        message = (
            message.removeprefix("Input ").replace("valid dictionary", "mapping").partition(" or inst")[0]
        )
        message = f"{message}, not {error['input']!r}."
    message = message.removeprefix("Value error, ")
    kind = PydanticCustomError("fault", "{message}", {"message": message})
    return InitErrorDetails(type=kind, loc=location, input=error["input"])


def fault_at(title: str, value: Any, *faults: tuple[KeyPath, str]) -> ValidationError:
    """Return the error to raise in a validator for faults at key paths below the validated `value`."""
    return ValidationError.from_exception_data(
        title,
        [
            InitErrorDetails(
                type=PydanticCustomError("fault", "{message}", {"message": message}), loc=path, input=value
            )
            for path, message in faults
        ],
    )


def unknown_key(key: str, known: list[str]) -> str:
    """Say that `key` is unknown, the nearest of the known ones, and then all of them."""
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return f"is an unknown key.{hint} Known: {', '.join(known) or 'none'}."


def faults_of(error: ValidationError, document: Document) -> list[Fault]:
    """Return the faults of a failed validation, each with the place of the value that it is about."""
    faults = []
    for details in error.errors(include_url=False):
        path = _in_document(details["loc"], document.values)
        message = details["msg"].removeprefix("Value error, ")
        if "Did you mean" not in message:
            message += _likely_override(path, document)
        faults.append(Fault(document.place_of(path), dotted(path), message))
    return faults


def _likely_override(path: KeyPath, document: Document) -> str:
    """Return a hint when `path` is, or lies below, a key that an override added beside a similar one."""
    for end in range(1, len(path) + 1):
        siblings = document.added.get(path[:end], ())
        nearest = difflib.get_close_matches(str(path[end - 1]), siblings, n=1, cutoff=0.6)
        if nearest:
            return f" Did you mean {dotted((*path[: end - 1], *nearest))!r}?"
    return ""


def _in_document(location: KeyPath, values: Any) -> KeyPath:
    """Drop the steps of a pydantic location that are no keys of the recipe, such as the names of unions."""
    path: list[str | int] = []
    for depth, part in enumerate(location):
        inside_mapping = isinstance(values, Mapping) and part in values
        inside_list = isinstance(values, list) and isinstance(part, int) and part < len(values)
        if inside_mapping or inside_list:
            values = values[part]  # pyright: ignore[reportArgumentType, reportCallIssue]
        elif depth < len(location) - 1:
            continue
        path.append(part)
    return tuple(path)
