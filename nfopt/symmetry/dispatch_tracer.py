"""Tracing by running: every ATen operation of one real forward pass, for modules that cannot be exported.

It sees only the branches that the example inputs take. What leaves PyTorch (through numpy, say) and comes
back is taken for a constant, so that such a model's spec is worth no more than its verification.
"""

from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from nfopt.symmetry.calls import Value
from nfopt.symmetry.engine import MASKS, Engine
from nfopt.symmetry.skeleton import Skeleton


def run_dispatch(skeleton: Skeleton, args: tuple[Any, ...], kwargs: dict[str, Any], engine: Engine) -> None:
    """Run the copy, which must hold real numbers, and play what it does through the engine."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        places = stack.enter_context(_places(skeleton.module))
        recorder = stack.enter_context(_Recorder(skeleton, engine, places))
        for name, leaf in [*((f"argument {i}", a) for i, a in enumerate(args)), *kwargs.items()]:
            recorder.add_input(name, leaf)
        outputs = skeleton.module(*args, **kwargs)
    engine.fix_output(
        [recorder.value(leaf) for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    )


class _Recorder(TorchDispatchMode):
    """Runs each operation and plays it through the engine."""

    def __init__(self, skeleton: Skeleton, engine: Engine, places: list[str]) -> None:
        super().__init__()
        self.engine = engine
        self.places = places
        self.names = skeleton.name_of()
        self.buffers = {id(tensor): name for name, tensor in skeleton.module.named_buffers()}
        # Tensors are kept alive beside their values, so that no identity is used twice.
        self.values: dict[int, tuple[Tensor, Value]] = {}

    def add_input(self, name: str, tree: Any) -> None:
        for leaf in pytree.tree_leaves(tree):
            if isinstance(leaf, Tensor):
                self.values[id(leaf)] = (leaf, self._input(leaf, name))

    def _input(self, leaf: Tensor, name: str) -> Value:
        return self.engine.boundary(leaf.shape, f"model input ({name})", mask=leaf.dtype in MASKS)

    def value(self, tensor: Tensor) -> Value:
        """Return the value of a tensor: one seen before, the module's own, or a constant."""
        if id(tensor) not in self.values:
            name = self.names.get(id(tensor))
            if name is not None:
                made = self.engine.parameter(name, tensor.shape)
            else:
                buffer = self.buffers.get(id(tensor))
                made = self.engine.constant(tensor, "a constant" if buffer is None else f"buffer {buffer}")
            self.values[id(tensor)] = (tensor, made)
        return self.values[id(tensor)][1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # An operation may change its inputs in place: their values are looked up before it runs.
        bound_args = pytree.tree_map_only(Tensor, self.value, args)
        bound_kwargs = pytree.tree_map_only(Tensor, self.value, kwargs)
        result = func(*args, **kwargs)
        tensors = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        shapes = [tuple(tensor.shape) for tensor in tensors]
        place = self.places[-1]
        made = self.engine.apply(func, bound_args, bound_kwargs, shapes, place=place)
        for tensor, value in zip(tensors, made, strict=True):
            value.mask = tensor.dtype in MASKS
            if id(tensor) not in self.values or not func._schema.is_mutable:
                self.values[id(tensor)] = (tensor, value)
        return result


@contextmanager
def _places(module: nn.Module) -> Any:
    """Yield a list whose last entry is always the name of the running module."""
    stack = [""]
    handles = []

    def enter(name: str) -> Any:
        return lambda *_: stack.append(name)

    def leave(*_: Any) -> None:
        stack.pop()

    for name, part in module.named_modules():
        if name:
            handles.append(part.register_forward_pre_hook(enter(name)))
            handles.append(part.register_forward_hook(leave, always_call=True))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()
