"""Tensors as bits: what separates two of them, exactly, and a mark by which one is known again."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

import torch
from jaxtyping import UInt8
from torch import Tensor

from nfopt.errors import EditingError

SHOWN = 6


@dataclass(frozen=True, slots=True)
class Mark:
    """By what a tensor is known again.

    Attributes:
        dtype: its type without the "torch.".
        shape: its shape.
        digest: SHA-256 of its bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    digest: str

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def bytes_of(tensor: Tensor) -> UInt8[Tensor, " bytes"]:
    """Return the bytes of a tensor's elements in the order of its axes, whatever its order in memory."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def mark_of(tensor: Tensor) -> Mark:
    """Return the mark of a tensor; two tensors have equal marks where type, shape and every bit are equal."""
    digest = sha256(bytes_of(tensor).numpy().tobytes()).hexdigest()
    return Mark(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), digest)


def difference(before: Tensor, after: Tensor) -> UInt8[Tensor, " bytes"]:
    """Return the exclusive or of the bytes of two tensors of one type and shape.

    A difference of numbers is rounded and does not bring the first one back; this one does, whichever way it
    is applied and whatever the numbers are, negative zeros and not-a-numbers included.
    """
    return bytes_of(before) ^ bytes_of(after)


def flipped(tensor: Tensor, bits: UInt8[Tensor, " bytes"]) -> Tensor:
    """Return the tensor on the other side of a `difference`, on the CPU."""
    return (bytes_of(tensor) ^ bits).view(tensor.dtype).reshape(tensor.shape)


def total_digest(marks: Mapping[str, Mark]) -> str:
    """Return one SHA-256 of all marks with their names."""
    digest = sha256()
    for name in sorted(marks):
        digest.update(f"{name} {marks[name]} {marks[name].digest}\n".encode())
    return digest.hexdigest()


def differences(expected: Mapping[str, Mark], found: Mapping[str, Mark]) -> list[str]:
    """Return one line for people for each tensor that is absent, new, or not the same."""
    lines = [f"{name} is absent" for name in expected if name not in found]
    lines += [f"{name} is unknown" for name in found if name not in expected]
    for name, mark in expected.items():
        other = found.get(name)
        if other is None or other == mark:
            continue
        if (other.dtype, other.shape) == (mark.dtype, mark.shape):
            lines.append(f"{name} has other values")
        else:
            lines.append(f"{name} is {other}, not {mark}")
    return lines


def shortened(lines: Iterable[str]) -> str:
    """Return the first lines in one, and how many there are."""
    lines = list(lines)
    more = f"; ... ({len(lines)} in all)" if len(lines) > SHOWN else ""
    return "; ".join(lines[:SHOWN]) + more


def check_readable(tensors: Mapping[str, Tensor]) -> None:
    """Raise EditingError for tensors without values or without a plain layout."""
    for name, tensor in tensors.items():
        if torch.nn.parameter.is_lazy(tensor):
            raise EditingError(f"{name} has no shape yet. Run the model once before it is edited.")
        if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
            raise EditingError(f"{name} has no plain values to edit ({tensor.device}, {tensor.layout}).")
