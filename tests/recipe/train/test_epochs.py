"""Which images fall to which process, and what is kept of a training."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from nfopt.models import build_model
from nfopt.progress import silent
from nfopt.recipe.inputs import DataOptions
from nfopt.recipe.train.epochs import EpochConfig, Shares, train_epochs
from nfopt.recipe.train.images import Augmentation, load_images
from nfopt.training import Optimization, as_trained, batch_indices

DATA = DataOptions(name="digits", n_train=101, n_val=53)


@settings(max_examples=40, deadline=None)
@given(
    processes=st.integers(1, 4),
    accumulate=st.integers(1, 3),
    part=st.integers(1, 3),
    seed=st.integers(0, 9),
    first=st.integers(0, 5),
)
def test_the_shares_of_all_processes_are_the_batch_each_image_once(
    processes: int, accumulate: int, part: int, seed: int, first: int
) -> None:
    batch = processes * accumulate * part
    config = EpochConfig(epochs=1, batch_size=batch, accumulate=accumulate, seed=seed)
    steps = range(first, first + 2)
    shares = [list(Shares(config, 101, steps, rank, processes)) for rank in range(processes)]
    assert all(len(share) == 2 * accumulate for share in shares)
    assert all(len(keys) == part for share in shares for keys in share)
    for position, step in enumerate(steps):
        keys = [
            key
            for share in shares
            for keys in share[position * accumulate : (position + 1) * accumulate]
            for key in keys
        ]
        expected = batch_indices(step, images=101, batch_size=batch, seed=seed).tolist()
        assert sorted(number for number, _ in keys) == sorted(expected)
        assert {draw for _, draw in keys} == {step}


@contextmanager
def as_zeros(model: nn.Module, images: torch.Tensor) -> Iterator[None]:
    """Answer with other weights than those that are trained: all zero."""
    assert images.shape == (101, 1, 8, 8)
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.data.zero_()
    yield
    model.load_state_dict(trained)


def test_what_the_optimizer_answers_with_is_evaluated_and_kept_and_training_goes_on(tmp_path: Path) -> None:
    sets = load_images(DATA, Augmentation(), seed=0)
    finals = []
    for answer in (as_trained, as_zeros):
        model = build_model("mlp", sets.in_shape, sets.classes, options={"hidden": [7]})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimization = Optimization(optimizer, evaluating=answer)
        standing = train_epochs(
            model,
            sets,
            optimization,
            EpochConfig(epochs=2, batch_size=20),
            Accelerator(cpu=True),
            state_file=tmp_path / f"state{len(finals)}",
            folder=tmp_path,
            progress=silent,
        )
        finals.append([parameter.detach() for parameter in model.parameters()])
    assert standing.epochs[-1]["val_loss"] == pytest.approx(math.log(10))
    assert all(not value.any() for value in load_file(tmp_path / "last.safetensors").values())
    assert all(torch.equal(a, b) for a, b in zip(*finals, strict=True))
