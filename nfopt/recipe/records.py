"""Dataclasses of the library as parts of a recipe, read as strictly as the recipe itself."""

from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, get_type_hints

from pydantic import ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import InitErrorDetails, PydanticCustomError

from nfopt.errors import NfoptError
from nfopt.recipe.strict import unknown_key


def record(kind: type[Any]) -> WrapValidator:
    """Return the annotation that reads the dataclass `kind`: unknown keys and its own refusals are faults."""
    return WrapValidator(partial(_strictly, kind))


def _unknown_keys(
    kind: type[Any], data: Any, path: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], str]]:
    """Return path and message of every key of `data` that the dataclass `kind` does not have."""
    if not isinstance(data, dict):
        return []
    hints = get_type_hints(kind)
    found = []
    for key, value in data.items():
        if key not in hints:
            found.append(((*path, str(key)), unknown_key(str(key), [f.name for f in fields(kind)])))
        elif is_dataclass(hints[key]):
            found += _unknown_keys(hints[key], value, (*path, key))
    return found


def _strictly(kind: type[Any], data: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    unknown = _unknown_keys(kind, data)
    if unknown:
        raise ValidationError.from_exception_data(
            kind.__name__,
            [
                InitErrorDetails(
                    type=PydanticCustomError("fault", "{message}", {"message": message}), loc=path, input=data
                )
                for path, message in unknown
            ],
        )
    try:
        return handler(data)
    except NfoptError as error:
        raise ValueError(str(error)) from error
