"""Models by name: the small ones of this file, any of timm's, or `package.module:factory` of one's own."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import timm
import torch
from torch import Tensor, nn

from nfopt.errors import NfoptError, UnknownNameError
from nfopt.registry import Registry

Shape = tuple[int, ...]
ModelFactory = Callable[..., Any]
MODELS: Registry[ModelFactory] = Registry("model")

_GIVEN = ("in_shape", "classes")
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class ModelError(NfoptError):
    """A model cannot be made from its name, its options or its input shape."""


@dataclass(frozen=True)
class NamedModel:
    """A model with inputs that it runs on.

    Attributes:
        name: what it was asked for by.
        module: the model, in training mode, freshly initialised.
        example_inputs: positional inputs, a batch of two.
    """

    name: str
    module: nn.Module
    example_inputs: tuple[Tensor, ...]


@MODELS.register("mlp")
def mlp(
    in_shape: Shape, classes: int, *, hidden: list[int] | tuple[int, ...] = (64, 64), activation: str = "relu"
) -> nn.Module:
    """Flattened input, `hidden` layers of the given widths, one activation after each, a linear head."""
    if activation not in _ACTIVATIONS:
        raise ModelError(f"mlp has no activation {activation!r}; it has {', '.join(_ACTIVATIONS)}.")
    widths = [prod(in_shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


@MODELS.register("cnn")
def cnn(in_shape: Shape, classes: int, *, channels: list[int] | tuple[int, ...] = (32, 64, 64)) -> nn.Module:
    """3 x 3 convolutions, BatchNorm, ReLU; stride 2 from the second on; mean pooling, a linear head."""
    layers: list[nn.Module] = []
    fan_in = in_shape[0]
    for depth, fan_out in enumerate(channels):
        conv = nn.Conv2d(fan_in, fan_out, 3, stride=1 if depth == 0 else 2, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(fan_out), nn.ReLU()]
        fan_in = fan_out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, classes))


@MODELS.register("cifar-cnn")
def cifar_cnn(in_shape: Shape, classes: int) -> nn.Module:
    """3 x 3 convolutions to 32, 64 and 80 channels, all of stride 2; BatchNorm, ReLU; 67k parameters."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise((in_shape[0], 32, 64, 80)):
        conv = nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(80, classes))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm beside a shortcut, which is a 1 x 1 one where shapes change."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(fan_out),
            nn.ReLU(),
            nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(fan_out),
        )
        self.shortcut = (
            nn.Identity()
            if stride == 1 and fan_in == fan_out
            else nn.Sequential(
                nn.Conv2d(fan_in, fan_out, 1, stride=stride, bias=False), nn.BatchNorm2d(fan_out)
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the block's output."""
        return torch.relu(self.body(images) + self.shortcut(images))


@MODELS.register("resnet20")
def resnet20(in_shape: Shape, classes: int, *, width: int = 16) -> nn.Module:
    """ResNet-20 for small images (He et al. 2016, section 4.2), 1 x 1 shortcuts; `width`, x2, x4 channels."""
    stem = [nn.Conv2d(in_shape[0], width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    channels = [width] * 4 + [2 * width] * 3 + [4 * width] * 3
    blocks = [
        ResidualBlock(fan_in, fan_out, stride=1 if fan_in == fan_out else 2)
        for fan_in, fan_out in pairwise(channels)
    ]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes))


def check_model_name(name: str) -> None:
    """Raise UnknownNameError, with the nearest names, unless `name` stands for a model."""
    if ":" in name:
        _own_factory(name)
    elif name not in MODELS and not timm.is_model(name):
        known = [*MODELS, *timm.list_models()]
        nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        hint = f" Did you mean {' or '.join(repr(n) for n in nearest)}?" if nearest else ""
        raise UnknownNameError(
            f"unknown model {name!r}.{hint} Known: {', '.join(MODELS)}, any of timm's {len(known)} names, "
            "or package.module:factory for a model of your own."
        )


def check_model_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise ModelError if a model that is not timm's does not take `options`; timm's are built to know."""
    if ":" in name or name in MODELS:
        factory = MODELS[name] if name in MODELS else _own_factory(name)
        _bound(name, factory, dict.fromkeys(_GIVEN), dict(options))


def build_model(
    name: str, in_shape: Shape, classes: int, *, seed: int = 0, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """Return a freshly initialised model, the same for the same seed; the global random state is untouched.

    Args:
        name: a name of this file, a timm name, or `package.module:factory`. The factory is given `options`
            and, if it has parameters of these names, `in_shape` and `classes`.
        in_shape: shape of one input without the batch: channels, height, width.
        classes: number of outputs.
        seed: seed of the initialisation.
        options: keyword arguments for the model.

    Raises:
        UnknownNameError: there is no such model.
        ModelError: the options do not fit it.
    """
    made = _make(name, in_shape, classes, seed, dict(options or {}))
    return made[0] if isinstance(made, tuple) else made


def named_model(
    name: str,
    in_shape: Shape | None = None,
    *,
    classes: int | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> NamedModel:
    """Return a model with example inputs.

    Args:
        name: as for `build_model`; a factory of one's own may return `(module, example_inputs)`.
        in_shape: shape of one input; None for the model's own (timm's default, 3 x 32 x 32 for ours).
        classes: number of outputs; None for the model's own.
        seed: seed of the initialisation and of the example inputs.
        options: keyword arguments for the model.

    Raises:
        UnknownNameError: there is no such model.
        ModelError: the options do not fit it, or the model has no input shape of its own and none is given.
    """
    made = _make(name, in_shape, classes, seed, dict(options or {}))
    if isinstance(made, tuple):
        module, inputs = made
        if in_shape is None:
            inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
            return NamedModel(name, module, inputs)
    else:
        module = made
    shape = in_shape or _own_shape(name, module)
    generator = torch.Generator().manual_seed(seed)
    return NamedModel(name, module, (torch.randn(2, *shape, generator=generator),))


def _own_shape(name: str, module: nn.Module) -> Shape:
    if name in MODELS:
        return (3, 32, 32)
    config = getattr(module, "pretrained_cfg", None) or {}
    if "input_size" not in config:
        raise ModelError(
            f"{name} does not say what inputs it takes. Give the shape of one input (--input 3,64,64), or "
            "let the factory return (module, example_inputs)."
        )
    return tuple(config["input_size"])


def _make(name: str, in_shape: Shape | None, classes: int | None, seed: int, options: dict[str, Any]) -> Any:
    """Call the factory that `name` stands for; returns a module, or a module with its example inputs."""
    check_model_name(name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if ":" not in name and name not in MODELS:
            return _make_timm(name, in_shape, classes, options)
        factory = MODELS[name] if name in MODELS else _own_factory(name)
        given: dict[str, Any] = {"in_shape": in_shape, "classes": classes}
        if name in MODELS:
            given = {"in_shape": in_shape or (3, 32, 32), "classes": classes or 10}
        arguments = _bound(name, factory, {k: v for k, v in given.items() if v is not None}, options)
        made = factory(**arguments)
    module = made[0] if isinstance(made, tuple) and len(made) == 2 else made
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"{name} returned a {type(made).__name__}; it must return a module or (module, example_inputs)."
        )
    return made


def _bound(
    name: str, factory: ModelFactory, given: dict[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments for `factory`: the options, and of what is given that which it has names for."""
    parameters = inspect.signature(factory).parameters
    arguments = {key: value for key, value in given.items() if key in parameters} | options
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        accepted = ", ".join(key for key in parameters if key not in _GIVEN) or "none"
        raise ModelError(f"the model {name!r}: {error}. Its options: {accepted}.") from error
    return arguments


def _make_timm(name: str, in_shape: Shape | None, classes: int | None, options: dict[str, Any]) -> nn.Module:
    arguments: dict[str, Any] = dict(options)
    if classes is not None:
        arguments["num_classes"] = classes
    if in_shape is not None:
        arguments["in_chans"] = in_shape[0]
    try:
        return timm.create_model(name, pretrained=False, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"timm cannot make {name!r} with {arguments}: {error}.") from error


def _own_factory(name: str) -> ModelFactory:
    """Import the callable that `package.module:factory` names."""
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise UnknownNameError(
            f"the model {name!r} cannot be imported: {error}. It is written package.module:factory, and the "
            "module must be installed or lie in the current folder."
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise UnknownNameError(f"{module_name} has no callable {attribute!r} to make the model {name!r}.")
    return factory
