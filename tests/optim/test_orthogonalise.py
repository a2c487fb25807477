"""Newton-Schulz orthogonalisation against the SVD."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nfopt.optim.orthogonalise import SPLIT_FROM, orthogonalise, symmetric_product


def random_matrix(seed: int, rows: int, cols: int) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seed=st.integers(0, 2**31), shape=st.sampled_from([(3, 5), (5, 3), (7, 7), (3, 17), (17, 3), (1, 5)]))
def test_singular_values_end_near_one_and_singular_vectors_stay(seed: int, shape: tuple[int, int]) -> None:
    left, _, right = torch.linalg.svd(random_matrix(seed, *shape), full_matrices=False)
    values = torch.linspace(0.3, 1.0, min(shape), dtype=torch.float64)
    result = orthogonalise(left @ torch.diag(values) @ right)
    inside = left.mT @ result @ right.mT
    assert torch.allclose(inside, torch.diag(inside.diagonal()), atol=1e-9)
    assert bool(((inside.diagonal() > 0.6) & (inside.diagonal() < 1.3)).all())


@given(seed=st.integers(0, 2**31))
def test_the_path_for_wide_matrices_agrees_with_the_plain_one(seed: int) -> None:
    wide = random_matrix(seed, 5, 23)
    padded = torch.cat([wide, torch.zeros(12, 23, dtype=torch.float64)])  # 17 x 23 takes the plain path
    assert torch.allclose(orthogonalise(wide), orthogonalise(padded)[:5], atol=1e-9)


@pytest.mark.parametrize("shape", [(3, 5), (5, 13)])
def test_it_commutes_with_permutations_of_rows_and_columns(shape: tuple[int, int]) -> None:
    matrix = random_matrix(0, *shape)
    rows, cols = torch.randperm(shape[0]), torch.randperm(shape[1])
    assert torch.allclose(
        orthogonalise(matrix)[rows][:, cols], orthogonalise(matrix[rows][:, cols]), atol=1e-11
    )


def test_a_zero_matrix_stays_zero() -> None:
    assert torch.equal(orthogonalise(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_a_batch_is_orthogonalised_matrix_by_matrix() -> None:
    batch = torch.stack([random_matrix(i, 3, 5) * 10.0**i for i in range(4)])
    singly = torch.stack([orthogonalise(matrix) for matrix in batch])
    assert torch.allclose(orthogonalise(batch), singly, atol=1e-12)


def test_a_large_symmetric_product_is_the_plain_one() -> None:
    gram = torch.stack([torch.cov(random_matrix(seed, SPLIT_FROM + 7, 400)) for seed in (0, 1)])
    square = 2.0 * gram + 3.0 * gram @ gram
    assert torch.allclose(symmetric_product(gram, gram, gram, beta=2.0, alpha=3.0), square, atol=1e-12)
    assert torch.allclose(symmetric_product(gram, gram), gram @ gram, atol=1e-12)


@pytest.mark.parametrize("shape", [(SPLIT_FROM + 3, SPLIT_FROM + 5), (SPLIT_FROM + 3, 3 * SPLIT_FROM)])
def test_a_large_matrix_is_orthogonalised_like_its_textbook_form(shape: tuple[int, int]) -> None:
    matrix = random_matrix(0, *shape)
    x = matrix / matrix.norm()
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    assert torch.allclose(orthogonalise(matrix), x, atol=1e-9)


@pytest.mark.parametrize("shape", [(7, 11), (5, 23), (23, 5), (2, 7, 11)])
def test_products_in_bfloat16_change_the_direction_little(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exact, rough = orthogonalise(matrix), orthogonalise(matrix, products=torch.bfloat16)
    assert rough.dtype == matrix.dtype
    assert 0 < float((rough - exact).norm() / exact.norm()) < 0.05
    values = torch.linalg.svdvals(rough)
    assert bool(((values > 0.5) & (values < 1.4)).all())
