"""What must hold of the images, labels and models that are given to `adapt`, said before any work is done."""

from hashlib import sha256

import torch
from torch import Tensor, nn

from nfopt.data import Split
from nfopt.editing.bits import bytes_of
from nfopt.editing.methods.method import Method
from nfopt.editing.norms import norms_of
from nfopt.errors import EditingError
from nfopt.symmetry import unwrap

# What PyTorch modules raise on inputs that they were not made for.
FORWARD_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)


def check_inputs(model: nn.Module, target: Tensor, source: Split | None, held_out: Split | None) -> None:
    """Raise EditingError unless the images are batches of finite numbers, all of one shape."""
    if not isinstance(target, Tensor):
        raise EditingError(f"target is a {type(target).__name__}; give the images as one tensor.")
    if not list(unwrap(model).parameters()) and not list(unwrap(model).buffers()):
        raise EditingError(f"{type(unwrap(model)).__name__} has no parameters or buffers to edit.")
    for name, images in (
        ("target", target),
        ("source", None if source is None else source.images),
        ("held_out", None if held_out is None else held_out.images),
    ):
        if images is None:
            continue
        if images.ndim < 2 or len(images) == 0:
            raise EditingError(
                f"there are no {name} images: the tensor has shape {tuple(images.shape)}. Give a batch, 16 "
                "to 256 images or more."
            )
        if not images.is_floating_point():
            raise EditingError(
                f"the {name} images are of type {images.dtype}; give them as floating point, prepared as for "
                "the model's training (divided by 255, standardised)."
            )
        if not bool(torch.isfinite(images).all()):
            raise EditingError(f"some values of the {name} images are not finite.")
        if images.shape[1:] != target.shape[1:]:
            raise EditingError(
                f"the {name} images have shape {list(images.shape[1:])}, the target images "
                f"{list(target.shape[1:])}. Resize one to the other."
            )


def check_batchnorm(method: Method, model: nn.Module) -> None:
    """Raise EditingError when the method needs BatchNorm and the model has none."""
    if "batchnorm" in method.needs and not norms_of(model):
        raise EditingError(
            f"{method.name} edits BatchNorm, and {type(unwrap(model)).__name__} has no BatchNorm layer with "
            "running statistics. Methods that need none: shot-im, finetune, mean-delta."
        )


def check_needs(method: Method, model: nn.Module, labels: Tensor | None) -> None:
    """Raise EditingError when the method needs BatchNorm or labels and there are none."""
    check_batchnorm(method, model)
    if "labels" in method.needs and labels is None:
        raise EditingError(
            f"{method.name} needs labels=..., the class of each target image (-1 where it is not known). "
            "Methods that need none: bn, tent, eata, shot-im."
        )


def check_labels(
    name: str, labels: Tensor, classes: int, count: int | None, *, trained_on: bool = False
) -> None:
    """Raise EditingError unless the labels are classes of the model, one for each image.

    Args:
        name: what they are called.
        labels: whole numbers; -1 is allowed in the target's own.
        classes: number of the model's classes.
        count: number of images; None where the caller's record already ties the two.
        trained_on: whether a method learns from them: then two classes at least must be there.
    """
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise EditingError(
            f"{name}: give one whole number per image, not {labels.dtype} of shape {tuple(labels.shape)}."
        )
    if count is not None and len(labels) != count:
        raise EditingError(f"{name}: there are {len(labels)} for {count} images; give one for each.")
    lowest = -1 if count is not None else 0
    low, high = (int(value) for value in labels.aminmax()) if len(labels) else (0, 0)
    if low < lowest or high >= classes:
        unknown = ", or -1 where the class is not known" if lowest < 0 else ""
        raise EditingError(
            f"{name} go from {low} to {high}, out of range: the model has {classes} classes, 0 to "
            f"{classes - 1}{unknown}."
        )
    known = labels[labels >= 0].unique()
    if trained_on and len(known) < 2:
        what = "no class at all" if len(known) == 0 else f"one class only ({int(known[0])})"
        raise EditingError(f"{name} name {what}; the model would learn to say that always. Give several.")


def digest_of_set(images: Tensor, labels: Tensor | None) -> str:
    """Return the SHA-256 of images and labels: types, shapes and values."""
    digest = sha256()
    for tensor in (images, labels):
        if tensor is not None:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(bytes_of(tensor).numpy().tobytes())
    return digest.hexdigest()
