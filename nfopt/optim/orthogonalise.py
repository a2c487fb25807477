"""Orthogonalisation by Newton-Schulz iteration: the nearest semi-orthogonal matrix, without an SVD."""

import torch
from jaxtyping import Float
from torch import Tensor

# Jordan et al. 2024 (Muon): a quintic that lifts every singular value in (0, 1] into about [0.7, 1.2]
# in five iterations.
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(
    matrix: Float[Tensor, "*batch rows cols"], iterations: int = 5
) -> Float[Tensor, "*batch rows cols"]:
    """Return U V^T, approximately, for matrices G = U S V^T.

    X_0 = G / |G|_F;  X <- (a I + b A + c A^2) X,  A = X X^T, with (a, b, c) of Jordan et al. 2024. A zero
    matrix stays zero. It commutes with permutations of the rows and of the columns.

    For a matrix more than twice as wide as high, the product of the polynomials is accumulated on the small
    Gram matrix, and the matrix itself is touched twice instead of twice in every iteration.
    """
    wide = matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT
    norm = wide.square().sum(dim=(-2, -1), keepdim=True).sqrt()
    x = wide / norm.clamp(min=1e-30)
    x = _on_gram(x, iterations) if x.shape[-1] > 2 * x.shape[-2] else _on_matrix(x, iterations)
    return x if matrix.shape[-2] <= matrix.shape[-1] else x.mT


def _on_matrix(x: Float[Tensor, "*batch low high"], iterations: int) -> Float[Tensor, "*batch low high"]:
    a, b, c = QUINTIC
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x


def _on_gram(x: Float[Tensor, "*batch low high"], iterations: int) -> Float[Tensor, "*batch low high"]:
    a, b, c = QUINTIC
    identity = torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
    gram = x @ x.mT
    total = identity
    for i in range(iterations):
        factor = a * identity + b * gram + c * (gram @ gram)
        total = factor @ total
        if i + 1 < iterations:
            gram = factor @ gram @ factor
    return total @ x
