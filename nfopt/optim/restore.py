"""Restoring: whether a saved optimizer state fits, told before anything of it is loaded."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nfopt.errors import OptimizerError
from nfopt.optim.decisions import DECISIONS
from nfopt.optim.moments import SECOND, initial_state

STEPS_TAKEN = "steps_taken"
RULE_DIGEST = "rule_digest"

Group = Mapping[str, Any]


def check_saved_state(saved: Any, groups: Sequence[Group], rule_name: str) -> None:
    """Check a state dict of NFOptimizer against the groups of the optimizer that is to go on from it.

    Args:
        saved: what `state_dict` returned.
        groups: the optimizer's parameter groups.
        rule_name: how the optimizer's checkpoint is called.

    Raises:
        OptimizerError: it is no such state dict, or belongs to another rule or to other parameters.
    """
    if not (
        isinstance(saved, Mapping)
        and isinstance(saved.get("state"), Mapping)
        and isinstance(saved.get("param_groups"), Sequence)
    ):
        raise OptimizerError("an optimizer state is a dictionary with 'state' and 'param_groups'.")
    for group in saved["param_groups"]:
        _check_rule(group, groups[0][RULE_DIGEST], rule_name)
    _check_groups(saved["param_groups"], groups)
    ids = [key for group in saved["param_groups"] for key in group["params"]]
    if strangers := [key for key in saved["state"] if key not in ids]:
        raise _misfit(f"it has state for {strangers[0]!r}, which is in none of its groups")
    targets = [pair for group in groups for pair in zip(group["param_names"], group["params"], strict=True)]
    for key, (name, param) in zip(ids, targets, strict=True):
        if entry := saved["state"].get(key):
            _check_entry(entry, name, param)


def _check_rule(group: Group, mine: str, rule_name: str) -> None:
    theirs = group.get(RULE_DIGEST)
    if theirs is None:
        raise OptimizerError("the optimizer state was not written by NFOptimizer.")
    if theirs != mine:
        raise OptimizerError(
            f"the optimizer state belongs to the rule {theirs[:12]}, this optimizer uses {mine[:12]} "
            f"({rule_name}). Build it with the checkpoint of the saved run."
        )


def _check_groups(saved: Sequence[Group], groups: Sequence[Group]) -> None:
    theirs, mine = ([len(group["params"]) for group in some] for some in (saved, groups))
    if theirs != mine:
        raise _misfit(f"its groups have {_listed(theirs)} parameters, the optimizer's {_listed(mine)}")
    for group in saved:
        taken = group.get(STEPS_TAKEN)
        if isinstance(taken, bool) or not isinstance(taken, int) or taken < 0:
            raise _misfit(f"{STEPS_TAKEN} of a group is {taken!r}, not a number of steps")
    theirs, mine = ([n for group in some for n in group.get("param_names", ())] for some in (saved, groups))
    # Parameters of other names may be the same ones wrapped; in another order they surely are not.
    if theirs != mine and sorted(theirs) == sorted(mine):
        first = next(i for i, (a, b) in enumerate(zip(theirs, mine, strict=True)) if a != b)
        raise _misfit(
            f"its parameters come in another order: number {first} is {theirs[first]}, here {mine[first]}"
        )


def _check_entry(entry: Any, name: str, param: Tensor) -> None:
    blank = torch.empty(param.shape, dtype=param.dtype, device="meta")
    expected = initial_state(blank, torch.float32)
    if isinstance(entry, Mapping) and SECOND in entry:
        expected[SECOND] = blank
    for key, like in expected.items():
        value = entry.get(key) if isinstance(entry, Mapping) else None
        if not isinstance(value, Tensor):
            raise _misfit(f"{key} of {name} is {'nothing' if value is None else type(value).__name__}")
        longer = key == DECISIONS and value.dim() == 1 and len(value) > len(like)
        if value.shape != like.shape and not longer:
            raise _misfit(f"{key} of {name} is {tuple(value.shape)}, the parameter {tuple(param.shape)}")
        if not value.is_floating_point():
            raise _misfit(f"{key} of {name} has the dtype {value.dtype}")


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers)) or "no"


def _misfit(what: str) -> OptimizerError:
    return OptimizerError(
        f"the optimizer state does not fit: {what}. Load the state of the same model and parameter groups."
    )
