"""The optimizer's state: made for every parameter, moved with it, and kept after a step."""

from collections.abc import Collection, Mapping, MutableMapping
from typing import TypeAlias

import torch
from torch import Tensor

from nfopt.optim.decisions import DECISIONS
from nfopt.optim.dtypes import common_work_dtype
from nfopt.optim.guard_report import FIRST, LAST, mark
from nfopt.optim.moments import SCALAR_STATE, SECOND, SKIPPED, STEP, TENSOR_STATE, initial_state
from nfopt.optim.plan import Part, Plan
from nfopt.optim.rounding import Rounding
from nfopt.optim.rule import LearnedUpdateRule
from nfopt.optim.sharded_tensors import like_parameter, placed_like

# torch's own: parameters to their states; asking for one that is missing makes an empty one.
OptimizerState: TypeAlias = MutableMapping[Tensor, dict[str, Tensor]]


def fill(
    state: OptimizerState,
    params: Mapping[str, Tensor],
    tables: Collection[str],
    momentum_dtype: torch.dtype | None,
) -> None:
    """Give every parameter a state: a fresh one, or its own, to where and what the parameter is now.

    Args:
        state: the optimizer's.
        params: the parameters, by name.
        tables: names of those that look like matrices but are none (embeddings).
        momentum_dtype: in which the momenta are kept; None: in that of the arithmetic.
    """
    work = common_work_dtype(param.dtype for param in params.values())
    skipped = next((entry[SKIPPED] for entry in state.values() if entry), None)
    for name, param in params.items():
        entry = state[param]
        if not entry:
            entry.update(initial_state(param, work, second=name in tables or None))
            if skipped is not None:
                entry[SKIPPED].copy_(skipped)
        elif entry[STEP].dtype != work or entry[STEP].device != param.device:
            entry.update({k: v.to(param.device, work) for k, v in entry.items()})
        kept = momentum_dtype or work
        entry.update({k: placed_like(entry[k].to(kept), param) for k in TENSOR_STATE if k in entry})
        for key in (FIRST, LAST):
            if key not in entry:
                entry[key] = torch.zeros_like(entry[STEP])


def complete(
    state: OptimizerState,
    params: Mapping[str, Tensor],
    rule: LearnedUpdateRule,
    momentum_dtype: torch.dtype | None,
) -> None:
    """Add what only the trace has shown to be needed.

    Second moments go to what looked like a matrix but is none (an embedding), longer decisions to a tensor
    with rows along several dimensions.
    """
    for name in rule.scaled:
        entry = state[params[name]]
        if SECOND not in entry:
            entry[SECOND] = torch.zeros_like(params[name], dtype=momentum_dtype or entry[STEP].dtype)
    for name, size in zip(rule.packing.names, rule.packing.sizes, strict=True):
        entry = state[params[name]]
        if len(entry[DECISIONS]) != size:
            entry[DECISIONS] = entry[STEP].new_zeros(size)


def keep_momenta(state: OptimizerState, params: Mapping[str, Tensor], part: Part, rounding: Rounding) -> None:
    """Keep the new momenta of some parameters.

    Args:
        state: the optimizer's.
        params: the parameters, by name.
        part: of the step.
        rounding: how they are rounded.
    """
    old, new = [], []
    for key, value in part.state.items():
        name, quantity = key.rsplit("/", 1)
        if part.shared:
            old.append(state[params[name]][quantity])
            new.append(rounding(value))
        else:
            state[params[name]][quantity] = like_parameter(rounding(value), params[name])
    if old:
        torch._foreach_copy_(old, new)  # pyright: ignore[reportPrivateImportUsage]


def keep_numbers(state: OptimizerState, params: Mapping[str, Tensor], plan: Plan, step: int) -> None:
    """Keep the rest of the new state, and note which step it was where the guard intervened.

    Args:
        state: the optimizer's.
        params: the parameters of this step, by name.
        plan: with the numbers, and decisions if there are fresh ones.
        step: number of the step, counted from 1.
    """
    entries = {name: state[param] for name, param in params.items()}
    noted = [entry[key] for key in (FIRST, LAST) for entry in entries.values()]
    first, last = torch.stack(noted).unflatten(0, (2, -1))
    marks = mark(first, last, plan.numbers.intervened, step)
    old = [entry[key] for key in SCALAR_STATE for entry in entries.values()] + noted
    values = [*plan.numbers.scalars, *torch.cat(marks).unbind()]
    for key, value in plan.decisions.items():
        old.append(entries[key.rsplit("/", 1)[0]][DECISIONS])
        values.append(value)
    # They come as views of few vectors; copied, each tensor keeps memory of its own.
    torch._foreach_copy_(old, values)  # pyright: ignore[reportPrivateImportUsage]
    if len(entries) < len(state):  # a step is skipped for all, those without a gradient included
        skipped = next(iter(entries.values()))[SKIPPED]
        for entry in state.values():
            if entry and entry[SKIPPED] is not skipped:
                entry[SKIPPED].copy_(skipped)
