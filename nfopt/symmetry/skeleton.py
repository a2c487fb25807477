"""A detached copy of a module, safe to trace and to run: the user's own module is never touched."""

import copy
import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils import _pytree as pytree

from nfopt.errors import TraceError

LOGGERS = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes", "torch.export")
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


@dataclass(frozen=True)
class Skeleton:
    """A copy of a module in eval mode, without hooks, on the CPU.

    Attributes:
        module: the copy.
        tensors: its parameters, running statistics and pruning masks under the user's names, tied ones once.
        statistics: which of them are no parameters.
        aliases: further names of tied parameters, mapped to the name in `tensors`.
    """

    module: nn.Module
    tensors: dict[str, Tensor]
    statistics: frozenset[str]
    aliases: dict[str, str]

    def name_of(self) -> dict[int, str]:
        """Return the user's name of each tensor of the copy, by identity."""
        return {id(tensor): name for name, tensor in self.tensors.items()}


def unwrap(module: nn.Module) -> nn.Module:
    """Return the user's module inside the wrappers of data parallelism and of torch.compile."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def copy_module(module: nn.Module, replace: Callable[[str, Tensor], Tensor]) -> Skeleton:
    """Copy a module with every parameter and buffer replaced by `replace(name, tensor)`.

    Hooks are left out, save those of torch.nn.utils that compute weights. A `forward` that was patched into
    an instance is dropped for its class's own. Names are those of `unwrap(module)`.

    Raises:
        TraceError: a parameter has no shape yet, or the module cannot be copied.
    """
    module = unwrap(module)
    memo: dict[int, Any] = {}
    tensors, aliases = _replace_tensors(module, replace, memo)
    for part in module.modules():
        _replace_attributes(part, memo)
    try:
        copied = copy.deepcopy(module, memo)
    except (TypeError, RuntimeError, AttributeError, ValueError) as error:
        raise TraceError(
            f"{type(module).__name__} cannot be copied: {error}. nfopt traces a copy, so as not to touch "
            "the model; give the class a __deepcopy__, or keep what cannot be copied out of the module."
        ) from error
    for original, part in zip(list(module.modules()), list(copied.modules()), strict=True):
        if _is_patched(original):
            part.__dict__.pop("forward", None)
        part.__dict__["_compiled_call_impl"] = None
        for name, child in list(part.named_children()):
            if unwrap(child) is not child:
                part._modules[name] = unwrap(child)
    # Modules drop lazily filled caches when training starts; such a cache would hide its parameters.
    copied.train().eval()
    copied.requires_grad_(False)
    names = set(_statistics(module))
    return Skeleton(copied, tensors, frozenset(names & set(tensors)), aliases)


def _replace_tensors(
    module: nn.Module, replace: Callable[[str, Tensor], Tensor], memo: dict[int, Any]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    statistics = set(_statistics(module))
    named: Iterable[tuple[str, Tensor]] = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in named:
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise TraceError(
                f"parameter {name!r} has no shape yet (a lazy module). "
                "Run the model once on real input, then trace it."
            )
        if id(tensor) in first:
            if first[id(tensor)] in tensors:
                aliases[name] = first[id(tensor)]
            continue
        first[id(tensor)] = name
        with torch.no_grad():
            new = replace(name, tensor)
        if isinstance(tensor, nn.Parameter):
            new = nn.Parameter(new, requires_grad=False)
        memo[id(tensor)] = new
        if isinstance(tensor, nn.Parameter) or name in statistics:
            tensors[name] = new
    return tensors, aliases


def _replace_attributes(part: nn.Module, memo: dict[int, Any]) -> None:
    """Keep hooks, patched methods and plain tensor attributes from being copied as they are."""
    attributes = part.__dict__
    dropped = set()
    for key in HOOKS:
        hooks = attributes.get(key)
        if isinstance(hooks, dict):
            kept = OrderedDict()
            for handle, hook in hooks.items():
                if type(hook).__module__.startswith("torch.nn.utils"):
                    kept[handle] = hook
                else:
                    dropped.add(handle)
            memo[id(hooks)] = kept
    for key in ("_original_forward", "_compiled_call_impl"):
        if attributes.get(key) is not None:
            memo[id(attributes[key])] = None
    if _is_patched(part):
        memo[id(attributes["forward"])] = None
    for value in attributes.values():
        for leaf in pytree.tree_leaves(value) if isinstance(value, dict | list | tuple) else [value]:
            if isinstance(leaf, Tensor) and id(leaf) not in memo:
                memo[id(leaf)] = leaf.detach().cpu().clone()


def _is_patched(part: nn.Module) -> bool:
    """Whether a `forward` was put into an instance from outside, and the class has one of its own.

    A class that chooses among its own methods (`self.forward = self.forward_fast`) is taken at its word.
    """
    own = part.__dict__.get("forward")
    if own is None or type(part).forward is nn.Module.forward:
        return False
    function = getattr(own, "__func__", own)
    return not any(function is entry for kind in type(part).__mro__ for entry in vars(kind).values())


def _statistics(module: nn.Module) -> list[str]:
    """Return the names of the buffers that are permuted with the neurons they belong to.

    These are running statistics (buffers beside a running mean or variance and of its shape) and the masks
    of torch.nn.utils.prune (`weight_mask` beside `weight_orig`).
    """
    found = []
    for prefix, part in module.named_modules(remove_duplicate=False):
        buffers = dict(part.named_buffers(recurse=False))
        anchor = buffers.get("running_mean", buffers.get("running_var"))
        for key, buffer in buffers.items():
            running = anchor is not None and buffer.shape == anchor.shape and buffer.is_floating_point()
            mask = key.endswith("_mask") and f"{key.removesuffix('_mask')}_orig" in part._parameters
            if running or mask:
                found.append(f"{prefix}.{key}" if prefix else key)
    return found


@contextmanager
def plain_conditions() -> Iterator[None]:
    """Run on the CPU, under no mode of the caller's, without warnings, and restore the random state."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    loggers = [logging.getLogger(name) for name in LOGGERS]
    disabled = [logger.disabled for logger in loggers]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # What goes wrong is raised; the exporter would log it as well, with its own stack.
        for logger in loggers:
            logger.disabled = True
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.device("cpu"))
            stack.enter_context(torch.random.fork_rng(devices=[]))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for logger, before in zip(loggers, disabled, strict=True):
            logger.disabled = before


def example_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments on the CPU from what the user gave.

    A tensor is the only argument, a tuple holds the positional ones, a dict the keyword ones.

    Raises:
        TraceError: anything else was given.
    """
    if isinstance(example_inputs, Tensor):
        args, kwargs = (example_inputs,), {}
    elif isinstance(example_inputs, tuple):
        args, kwargs = example_inputs, {}
    elif isinstance(example_inputs, dict) and all(isinstance(key, str) for key in example_inputs):
        args, kwargs = (), example_inputs
    else:
        raise TraceError(
            f"example_inputs is a {type(example_inputs).__name__}. Give a tensor, a tuple of positional "
            "arguments, or a dict of keyword arguments; wrap a lone list or dict argument "
            "in a tuple: (argument,)."
        )
    return pytree.tree_map(_own, args), pytree.tree_map(_own, kwargs)


def _own(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    if leaf.is_meta or type(leaf) not in (Tensor, nn.Parameter):
        # Fake and other wrapped tensors stand for their shape.
        return torch.zeros(tuple(leaf.shape), dtype=leaf.dtype, device="cpu")
    return leaf.detach().cpu().clone()


def describe_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Return the arguments for people: "(float32[2, 3], mask=None)"."""

    def show(leaf: Any) -> str:
        if isinstance(leaf, Tensor):
            return f"{str(leaf.dtype).removeprefix('torch.')}{list(leaf.shape)}"
        if isinstance(leaf, list | tuple):
            return "[" + ", ".join(show(each) for each in leaf) + "]"
        return repr(leaf)[:40]

    return (
        "(" + ", ".join([*(show(arg) for arg in args), *(f"{k}={show(v)}" for k, v in kwargs.items())]) + ")"
    )
