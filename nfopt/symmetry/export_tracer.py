"""Tracing by torch.export: the graph of ATen operations with the modules they came from."""

from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from nfopt.symmetry.calls import Value
from nfopt.symmetry.engine import MASKS, Engine
from nfopt.symmetry.skeleton import Skeleton

WRAPPERS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")


def export(skeleton: Skeleton, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    """Export the copy without decomposing its operations."""
    return torch.export.export(skeleton.module, args, kwargs, strict=False)


def play(program: ExportedProgram, skeleton: Skeleton, engine: Engine) -> None:
    """Play an exported graph through the engine."""
    names = skeleton.name_of()
    own: dict[str, Tensor] = {
        **dict(skeleton.module.named_parameters(remove_duplicate=False)),
        **dict(skeleton.module.named_buffers(remove_duplicate=False)),
    }
    values: dict[str, Value] = {}
    inputs: dict[str, Any] = {}
    for spec in program.graph_signature.input_specs:
        argument = getattr(spec.arg, "name", "")
        tensor = own.get(spec.target or "")
        if spec.kind is InputKind.CONSTANT_TENSOR or (tensor is None and spec.target is not None):
            found = program.constants.get(spec.target or "", tensor)
            tensor = found if isinstance(found, Tensor) else None
        if tensor is not None and id(tensor) in names:
            name = names[id(tensor)]
            if name not in values:
                values[name] = engine.parameter(name, tensor.shape)
            inputs[argument] = values[name]
        elif isinstance(tensor, Tensor):
            what = "a constant" if spec.kind is InputKind.CONSTANT_TENSOR else f"buffer {spec.target}"
            inputs[argument] = engine.constant(tensor, what)
        elif spec.kind is InputKind.USER_INPUT:
            inputs[argument] = None
    _Interpreter(program.graph_module, engine, program.constants).run_top(inputs)


class _Interpreter:
    """Plays one graph module through the engine."""

    def __init__(self, module: fx.GraphModule, engine: Engine, constants: dict[str, Any]) -> None:
        self.module = module
        self.engine = engine
        self.constants = constants
        self.env: dict[fx.Node, Any] = {}

    def run_top(self, inputs: dict[str, Any]) -> None:
        """Play the whole program; user inputs and outputs are fixed."""
        operands = []
        for node in self.module.graph.find_nodes(op="placeholder"):
            given = inputs.get(node.name)
            example = node.meta.get("val")
            if given is None and isinstance(example, Tensor):
                shape, mask = static_shape(example), example.dtype in MASKS
                given = self.engine.boundary(shape, f"model input ({node.name})", mask=mask)
            operands.append(given)
        self.engine.fix_output(self.run(operands))

    def run(self, operands: list[Any]) -> Any:
        """Play the graph on the operands and return its outputs."""
        pending = iter(operands)
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                self.env[node] = next(pending, None)
            elif node.op == "get_attr":
                self.env[node] = self._attribute(str(node.target))
            elif node.op == "output":
                return self._fetch(node.args[0])
            else:
                self.env[node] = self._call(node)
        return None

    def _attribute(self, target: str) -> Any:
        found: Any = self.module
        for part in target.split("."):
            found = getattr(found, part)
        return self.engine.constant(found, "a constant") if isinstance(found, Tensor) else found

    def _fetch(self, tree: Any) -> Any:
        return map_aggregate(tree, lambda leaf: self.env[leaf] if isinstance(leaf, fx.Node) else leaf)

    def _call(self, node: fx.Node) -> Any:
        args, kwargs = self._fetch(node.args), self._fetch(node.kwargs)
        if getattr(node.target, "__name__", "") == "getitem":
            container, index = args
            return container[index]
        target, example = node.target, node.meta.get("val")
        place = _place(node)
        name = getattr(target, "__name__", str(target))
        if isinstance(target, torch._ops.HigherOrderOperator):
            return self._higher_order(name, args, kwargs, example, place)
        shapes, rebuild = flat_outputs(example)
        if not isinstance(target, torch._ops.OpOverload):
            if not shapes:
                return example
            return rebuild(self.engine.opaque(name, (args, kwargs), shapes, place))
        outputs = self.engine.apply(target, args, kwargs, shapes, place=place, used=_used_outputs(node))
        leaves = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor)]
        for leaf, value in zip(leaves, outputs, strict=True):
            value.mask = leaf.dtype in MASKS
        return rebuild(outputs)

    def _higher_order(self, name: str, args: Any, kwargs: Any, example: Any, place: str) -> Any:
        graphs = [arg for arg in args if isinstance(arg, fx.GraphModule)]
        if name in WRAPPERS:
            position = args.index(graphs[0])
            return self._subgraph(graphs[0], list(args[position + 1 :]))
        if name == "cond":
            outcomes = [self._subgraph(graph, list(args[3])) for graph in args[1:3]]
            for first, second in zip(*outcomes, strict=True):
                if isinstance(first, Value) and isinstance(second, Value):
                    for mine, its in zip(first.axes, second.axes, strict=True):
                        self.engine.unifier.unify(mine, its)
            return outcomes[0]
        if len(graphs) == 1 and name in ("tag_activation_checkpoint", "invoke_subgraph", "wrap"):
            operands = [arg for arg in args if not isinstance(arg, fx.GraphModule | str)]
            return self._subgraph(graphs[0], operands)
        shapes, rebuild = flat_outputs(example)
        return rebuild(self.engine.opaque(name, (args, kwargs), shapes, place))

    def _subgraph(self, graph: fx.GraphModule, operands: list[Any]) -> Any:
        return _Interpreter(graph, self.engine, self.constants).run(operands)


class DataDependentShapeError(Exception):
    """A size in the graph depends on data; never leaves the tracer."""


def static_shape(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of a fake tensor whose sizes are numbers."""
    if not all(type(size) is int for size in tensor.shape):
        raise DataDependentShapeError
    return tuple(tensor.shape)


def flat_outputs(example: Any) -> tuple[list[tuple[int, ...]], Any]:
    """Return the shapes of the tensors in `example` and a function that puts values in their places."""
    leaves, spec = pytree.tree_flatten(example)
    shapes = [static_shape(leaf) for leaf in leaves if isinstance(leaf, Tensor)]

    def rebuild(values: list[Value]) -> Any:
        pending = iter(values)
        return pytree.tree_unflatten(
            [next(pending) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec
        )

    return shapes, rebuild


def _used_outputs(node: fx.Node) -> set[int] | None:
    """Return which of several outputs are read, or None for a single one."""
    if not isinstance(node.meta.get("val"), list | tuple):
        return None
    used: set[int] = set()
    for user in node.users:
        if getattr(user.target, "__name__", "") != "getitem":
            return None
        if user.users:
            position = user.args[1]
            assert isinstance(position, int)
            used.add(position)
    return used


def _place(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]) if stack else ""
