"""What an optimizer is given: named parameters and numeric options, checked."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nfopt.errors import OptimizerError


def named_parameter(entry: Any, names: Mapping[int, str], position: int) -> tuple[str, Tensor]:
    """Name a parameter as its model does, not as a wrapper of it does: the spec goes by these names."""
    given, param = entry if isinstance(entry, tuple) else (f"parameter {position}", entry)
    if not isinstance(param, Tensor):
        kind = type(param).__name__
        raise OptimizerError(f"a parameter is a tensor or a (name, tensor) pair, not {kind}.")
    return names.get(id(param), given), param


def check_range(name: str, value: Any) -> None:
    """Raise OptimizerError unless the option `name` is a finite number of at least 0."""
    try:
        fits = 0 <= float(value) < float("inf")
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise OptimizerError(f"{name} is {value!r}; it must be a finite number of at least 0.")


def flat_partition_error(found: str, expected: str) -> OptimizerError:
    """Return the error of a host that replaced the parameters by flat pieces of them."""
    return OptimizerError(
        f"the optimizer was built for {expected} but finds {found}. ZeRO and FSDP1 hand over flat "
        "partitions, in which rows and columns are gone; use FSDP2 (fully_shard) or DDP."
    )
