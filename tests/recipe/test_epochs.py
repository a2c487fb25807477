"""Which images fall to which process, and how scores are taken."""

import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from nfopt.metrics import evaluate
from nfopt.models import build_model
from nfopt.recipe.epochs import EpochConfig, Shares, evaluated
from nfopt.recipe.images import Augmentation, load_images
from nfopt.recipe.inputs import DataOptions
from nfopt.training import batch_indices

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


def test_scores_are_those_of_the_whole_set_at_once_and_the_mode_is_left_alone() -> None:
    sets = load_images(DATA, Augmentation(), seed=0)
    model = build_model("cnn", sets.in_shape, sets.classes, options={"channels": [5, 7]}).train()
    with torch.no_grad():
        model(torch.randn(11, *sets.in_shape))
    split = DATA.load().val
    expected = evaluate(model, split.images, split.labels)
    loss, accuracy = evaluated(model, sets.val, sets.classes, Accelerator(cpu=True))
    assert abs(loss - expected.loss) < 1e-5
    assert accuracy == expected.accuracy
    assert model.training
