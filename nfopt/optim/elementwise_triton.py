"""The element-wise part of a step as one Triton kernel; `elementwise.fold` is what it has to agree with."""

import os

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Float
from torch import Tensor

from nfopt.errors import OptimizerError
from nfopt.optim.elementwise import Folded, Mix

BLOCK = 1024


@triton.jit
def _fold(
    grad_in,
    slow_in,
    fast_in,
    numbers,
    grad_out,
    slow_out,
    fast_out,
    mixed_out,
    size,
    block: tl.constexpr,
):
    at = tl.program_id(0) * block + tl.arange(0, block)
    inside = at < size
    factor, of_slow, of_fast = tl.load(numbers), tl.load(numbers + 1), tl.load(numbers + 2)
    of_grad, into_slow, into_fast = tl.load(numbers + 3), tl.load(numbers + 4), tl.load(numbers + 5)
    grad = tl.load(grad_in + at, mask=inside, other=0.0).to(factor.dtype)
    # Comparisons with what is not a number are false.
    grad = tl.where(tl.abs(grad) < float("inf"), grad, 0.0) * factor
    slow = tl.load(slow_in + at, mask=inside, other=0.0).to(factor.dtype)
    fast = tl.load(fast_in + at, mask=inside, other=0.0).to(factor.dtype)
    slow = slow + into_slow * (grad - slow)
    fast = fast + into_fast * (grad - fast)
    tl.store(grad_out + at, grad, mask=inside)
    tl.store(slow_out + at, slow, mask=inside)
    tl.store(fast_out + at, fast, mask=inside)
    tl.store(mixed_out + at, slow * of_slow + fast * of_fast + grad * of_grad, mask=inside)


def fold(
    grad: Float[Tensor, "..."], slow: Float[Tensor, "..."], fast: Float[Tensor, "..."], mix: Mix
) -> Folded:
    """Return `elementwise.fold` of one tensor, reading and writing every element once.

    Args:
        grad: the gradient, in any floating dtype.
        slow: the slow momentum before the step, in any floating dtype.
        fast: the fast momentum before the step, in any floating dtype.
        mix: one number each, in the dtype of the arithmetic.

    Raises:
        OptimizerError: the tensors are on the CPU, and Triton's interpreter is not asked for.
    """
    if grad.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise OptimizerError("fused=True is for parameters on a GPU; leave it out on the CPU.")
    numbers = torch.stack([number.reshape(()) for number in mix])
    grad, slow, fast = (tensor.contiguous() for tensor in (grad, slow, fast))
    found = Folded(*(torch.empty_like(grad, dtype=numbers.dtype) for _ in Folded._fields))
    size = grad.numel()
    if size:
        kernel = _fold[(triton.cdiv(size, BLOCK),)]
        kernel(grad, slow, fast, numbers, *found, size, block=BLOCK)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return found
