"""What the rule is told about each tensor that never changes."""

import pytest
import torch
from torch import nn

from nfopt.optim.observations import TENSOR_FEATURES, static_features
from nfopt.symmetry.trace import trace_permutation_spec
from nfopt.weightspace.incidence import build_incidence

STATIC = TENSOR_FEATURES[TENSOR_FEATURES.index("depth") :]


def marked(model: nn.Module, example: torch.Tensor, feature: str) -> set[str]:
    """Return the tensors of which a yes-or-no feature is 1."""
    spec = trace_permutation_spec(model, (example,))
    incidence = build_incidence(spec)
    matrices = frozenset(name for name, entry in spec.tensors.items() if len(entry.axes) > 1)
    table = static_features(spec, incidence, matrices)[:, STATIC.index(feature)]
    assert set(table.tolist()) <= {0.0, 1.0}
    return {name for name, value in zip(incidence.names, table.tolist(), strict=True) if value}


MODELS = {
    "vectors": (
        nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 11), nn.ReLU(), nn.Linear(11, 3)),
        (2, 5),
    ),
    "images": (
        nn.Sequential(
            nn.Flatten(), nn.Linear(25, 7), nn.ReLU(), nn.Linear(7, 11), nn.ReLU(), nn.Linear(11, 3)
        ),
        (2, 1, 5, 5),
    ),
    "convolutions": (
        nn.Sequential(
            nn.Conv2d(2, 7, 3),
            nn.ReLU(),
            nn.Conv2d(7, 11, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(11, 3),
        ),
        (2, 2, 7, 7),
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_matrix_that_reads_the_input_is_marked_first_and_the_one_that_writes_the_output_last(kind: str):
    model, shape = MODELS[kind]
    names = [name for name, _ in model.named_parameters()]
    example = torch.randn(shape)
    assert marked(model, example, "first") == {names[0]}
    assert marked(model, example, "last") == {names[-2], names[-1]}
