"""Derivation of a module's permutation symmetry by reading one forward pass."""

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from nfopt.errors import TraceError
from nfopt.symmetry import rules as _rules  # noqa: F401  (entering the rules)
from nfopt.symmetry.dispatch_tracer import run_dispatch
from nfopt.symmetry.engine import Engine
from nfopt.symmetry.export_tracer import DataDependentShapeError, export, play
from nfopt.symmetry.freeze import freeze
from nfopt.symmetry.skeleton import (
    Skeleton,
    copy_module,
    describe_arguments,
    example_arguments,
    plain_conditions,
    unwrap,
)
from nfopt.symmetry.spec import PermutationSpec

Tracer: TypeAlias = Literal["export", "run"]
TRACERS = ("export", "run")
# What a user's forward pass, or the exporter on the way through it, may raise.
FORWARD_ERRORS = (
    RuntimeError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    ImportError,
)


def trace_permutation_spec(
    module: nn.Module, example_inputs: Any, *, tracer: Tracer | None = None
) -> PermutationSpec:
    """Derive which axes of a module's parameters and statistics may be permuted together.

    One forward pass of a detached copy in eval mode is read operation by operation; each operation ties the
    axes that it relates. Model inputs and outputs are fixed. An operation without a rule fixes every axis
    that it touches and is listed in the spec's `unruled`. The module itself is never run or changed.
    Buffers other than running statistics and pruning masks are constants: where one varies, its axis is
    fixed. What only happens in training (an auxiliary head) is not seen; parameters used nowhere else are
    fixed and flagged.

    Missed, soundly: channels that each attention head could permute for itself; in a packed projection of
    queries, keys and values, that the values' channels are independent of the others'; the pairs that rotary
    positions turn together.

    Args:
        module: any module; the wrappers of DistributedDataParallel and torch.compile are looked through, so
            that names are those of the module inside.
        example_inputs: a tensor (the only argument), a tuple of positional arguments, or a dict of keyword
            arguments. Values matter only to control flow; shapes and data types matter always.
        tracer: "export" (torch.export), "run" (one real forward pass, which sees only the branches taken), or
            None for export with the run as fallback.

    Raises:
        TraceError: the example inputs are of the wrong form, or the forward pass fails on them.
    """
    if not isinstance(module, nn.Module):
        raise TraceError(f"a torch.nn.Module is needed, not a {type(module).__name__}.")
    if tracer not in (None, *TRACERS):
        raise TraceError(f"tracer is {tracer!r}; give one of {TRACERS}, or None for both in turn.")
    module = unwrap(module)
    args, kwargs = example_arguments(example_inputs)
    with plain_conditions():
        if tracer != "run":
            skeleton = copy_module(module, _shape_only)
            try:
                program = export(skeleton, args, kwargs)
            except FORWARD_ERRORS as error:
                if tracer == "export":
                    raise _trace_error(module, args, kwargs, error) from error
            else:
                engine = Engine()
                try:
                    play(program, skeleton, engine)
                    return _spec(skeleton, engine)
                except DataDependentShapeError as error:
                    if tracer == "export":
                        raise TraceError(
                            f"a shape inside {type(module).__name__} depends on data, so that an exported "
                            'graph does not tell it. Leave out tracer="export".'
                        ) from error
        skeleton = copy_module(module, _real)
        engine = Engine()
        try:
            run_dispatch(skeleton, args, kwargs, engine)
        except FORWARD_ERRORS as error:
            raise _trace_error(module, args, kwargs, error) from error
        return _spec(skeleton, engine)


def _spec(skeleton: Skeleton, engine: Engine) -> PermutationSpec:
    values = {
        name: engine.ledger.parameters[name]
        if name in engine.ledger.parameters
        else engine.parameter(name, tensor.shape)
        for name, tensor in skeleton.tensors.items()
    }
    if values and not engine.ledger.usage:
        raise TraceError(
            f"the forward pass of {type(skeleton.module).__name__} reads none of its parameters. "
            "nfopt traces a copy: functions stored on the module must be given it, and must not hold on to "
            "the original."
        )
    return freeze(engine, values, skeleton.statistics, skeleton.aliases)


def _shape_only(name: str, tensor: Tensor) -> Tensor:
    # Memory that is never written costs nothing; other buffers are read for whether they vary.
    if isinstance(tensor, nn.Parameter):
        return torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device="cpu")
    return _real(name, tensor)


def _real(name: str, tensor: Tensor) -> Tensor:
    if tensor.is_meta:
        # Without values nothing is known to be constant.
        return torch.randn(tuple(tensor.shape), device="cpu").to(tensor.dtype)
    return tensor.detach().cpu().clone()


def _trace_error(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception
) -> TraceError:
    first_line = next((line for line in str(error).splitlines() if line.strip()), "no message")
    return TraceError(
        f"the forward pass of {type(module).__name__} failed on example inputs "
        f"{describe_arguments(args, kwargs)}: {type(error).__name__}: {first_line[:300].rstrip('. ')}. "
        "Give example_inputs of the shapes and data types that the model takes: a tensor, a "
        "tuple of positional arguments, or a dict of keyword arguments."
    )
