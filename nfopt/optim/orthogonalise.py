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
    tall = matrix.shape[-2] > matrix.shape[-1]
    wide = (matrix.mT if tall else matrix).reshape(-1, *sorted(matrix.shape[-2:]))
    norm = wide.square().sum(dim=(-2, -1), keepdim=True).sqrt()
    x = wide / norm.clamp(min=1e-30)
    x = _on_gram(x, iterations) if x.shape[-1] > 2 * x.shape[-2] else _on_matrix(x, iterations)
    return (x.mT if tall else x).reshape(matrix.shape)


def _on_matrix(x: Float[Tensor, "batch low high"], iterations: int) -> Float[Tensor, "batch low high"]:
    a, b, c = QUINTIC
    for _ in range(iterations):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _on_gram(x: Float[Tensor, "batch low high"], iterations: int) -> Float[Tensor, "batch low high"]:
    a, b, c = QUINTIC
    diagonal = a * torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
    gram, total = torch.bmm(x, x.mT), None
    for i in range(iterations):
        factor = torch.baddbmm(torch.add(diagonal, gram, alpha=b), gram, gram, alpha=c)
        total = factor if total is None else torch.bmm(factor, total)
        if i + 1 < iterations:
            gram = torch.bmm(torch.bmm(factor, gram), factor)
    return x if total is None else torch.bmm(total, x)
