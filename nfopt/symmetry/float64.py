"""A randomised float64 copy of a module that can be run again and again with other weights."""

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from nfopt.symmetry.skeleton import (
    HOOKS,
    Skeleton,
    copy_module,
    describe_arguments,
    example_arguments,
    plain_conditions,
    unwrap,
)
from nfopt.symmetry.spec import PermutationSpec, TensorAxes

WIDE = {torch.complex64: torch.complex128, torch.complex32: torch.complex128}


def widened(tensor: Tensor) -> Tensor:
    """Return a floating or complex tensor in double precision, any other as it is."""
    if tensor.is_floating_point():
        return tensor.double()
    return tensor.to(WIDE.get(tensor.dtype, tensor.dtype))


class RandomisedModule:
    """A float64 copy with all parameters and statistics drawn anew, at scales that let every path be seen.

    Attributes:
        base: the drawn tensors by name; zero-initialised gains and scales among them are of order one.
        promoted: operations that asked for less precision, which they did not get.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: PermutationSpec,
        example_inputs: Any,
        generator: torch.Generator,
        gain: float = 1.0,
    ) -> None:
        args, kwargs = example_arguments(example_inputs)
        self.description = f"{type(unwrap(module)).__name__}{describe_arguments(args, kwargs)}"
        self._args, self._kwargs = pytree.tree_map(lambda leaf: _input(leaf, generator), (args, kwargs))

        def replace(name: str, tensor: Tensor) -> Tensor:
            entry = spec.tensors.get(name)
            if entry is None:
                return widened(tensor.detach().cpu().clone())
            return _draw(name, tensor, entry, generator, gain)

        self.skeleton: Skeleton = copy_module(module, replace)
        self.base = {name: tensor.detach().clone() for name, tensor in self.skeleton.tensors.items()}
        self.promoted: dict[str, None] = {}
        self._changed: dict[str, None] = {}
        self._state = [(part, _snapshot(part.__dict__)) for part in self.skeleton.module.modules()]

    def run(self, changed: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """Return the tensors that the copy computes with the base tensors, some of them changed."""
        for part, state in self._state:
            # What a forward pass stored on its module may come from other weights.
            part.__dict__.clear()
            part.__dict__.update(_snapshot(state))
        changed = changed or {}
        with plain_conditions(), torch.no_grad():
            torch.manual_seed(0)
            for name in {**self._changed, **changed}:
                self.skeleton.tensors[name].copy_(changed.get(name, self.base[name]))
            self._changed = dict.fromkeys(changed)
            args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (self._args, self._kwargs))
            with _Promoting(self.promoted):
                outputs = self.skeleton.module(*args, **kwargs)
        return [leaf.clone() for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]

    def rounding(self, generator: torch.Generator) -> list[Tensor]:
        """Return what the copy computes when every base tensor is off by about one rounding error."""
        unit = torch.finfo(torch.float64).eps
        off = {}
        for name, tensor in self.base.items():
            noise = torch.randn(tuple(tensor.shape), generator=generator, dtype=torch.float64)
            off[name] = tensor * (1 + unit * noise) if tensor.is_floating_point() else tensor
        return self.run(off)


class _Promoting(TorchDispatchMode):
    """Computes in double precision whatever is asked for in less."""

    def __init__(self, promoted: dict[str, None]) -> None:
        super().__init__()
        self.promoted = promoted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        dtype = kwargs.get("dtype")
        if isinstance(dtype, torch.dtype) and dtype != _wide(dtype):
            kwargs["dtype"] = _wide(dtype)
            if any(isinstance(arg, Tensor) and arg.dtype == _wide(dtype) for arg in args):
                self.promoted[str(func._overloadpacket)] = None
        if func._schema.is_mutable:
            return func(*args, **kwargs)
        if any(_is_narrow(leaf) for leaf in _shallow_leaves(args, kwargs)):
            args, kwargs = pytree.tree_map_only(Tensor, _widened_if_narrow, (args, kwargs))
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            return _widened_if_narrow(result)
        return pytree.tree_map_only(Tensor, _widened_if_narrow, result)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype.is_floating_point else WIDE.get(dtype, dtype)


def _is_narrow(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dtype != _wide(leaf.dtype)


def _widened_if_narrow(tensor: Tensor) -> Tensor:
    return tensor.to(_wide(tensor.dtype)) if _is_narrow(tensor) else tensor


def _shallow_leaves(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    for arg in (*args, *kwargs.values()):
        if isinstance(arg, list | tuple):
            yield from arg
        else:
            yield arg


def _input(leaf: Any, generator: torch.Generator) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    leaf = widened(leaf)
    if leaf.is_floating_point() and leaf.numel() > 1 and bool((leaf == leaf.flatten()[0]).all()):
        # Constant inputs stand for their shape, and would leave much of the model untested.
        return torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
    return leaf


def _draw(name: str, tensor: Tensor, entry: TensorAxes, generator: torch.Generator, gain: float) -> Tensor:
    """Draw one tensor around the customary value of its role; `gain` scales the matrices."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor.detach().cpu().clone()
    dtype = _wide(tensor.dtype)
    noise = torch.randn(tuple(tensor.shape), generator=generator, dtype=dtype)
    leaf = name.rsplit(".", 1)[-1]
    if entry.role == "statistic":
        if "var" in leaf:
            return 0.5 + noise.abs().clamp(max=3.0)
        return 0.3 * noise + (1.0 if leaf == "weight" else 0.0)
    if entry.role == "norm_scale":
        return 1.0 + 0.3 * noise
    if entry.role in ("bias", "norm_shift"):
        return 0.3 * noise
    if entry.role == "embedding":
        return noise
    wide = [size for size in tensor.shape if size > 1]
    if len(wide) < 2 or entry.role not in ("linear", "conv", "recurrent", "other"):
        centre = _centre(tensor)
        return centre + 0.3 * noise
    roles = entry.dims or ("other",) * tensor.dim()
    fan_in = 1
    for size, role in zip(tensor.shape, roles, strict=True):
        fan_in *= size if role in ("in", "kernel") else 1
    if "in" not in roles:
        fan_in = max(fan_in, tensor.shape[-1])
    return noise * gain * (2.0 / fan_in) ** 0.5


def _centre(tensor: Tensor) -> float:
    """Return the mean magnitude of a tensor, at most 3; 0 where that is not a number or not known."""
    if tensor.is_meta or tensor.numel() == 0:
        return 0.0
    centre = float(tensor.detach().cpu().double().abs().mean())
    return min(centre, 3.0) if isfinite(centre) else 0.0


def _snapshot(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a module's attributes, containers copied one level deep; hooks do not change."""
    return {
        key: value.copy() if isinstance(value, dict | list | set) and key not in HOOKS else value
        for key, value in state.items()
    }
