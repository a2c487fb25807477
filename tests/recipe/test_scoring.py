"""Scores of a model over images that are read in batches."""

import torch
from accelerate import Accelerator

from nfopt.metrics import evaluate
from nfopt.models import build_model
from nfopt.recipe.inputs import DataOptions
from nfopt.recipe.scoring import evaluated
from nfopt.recipe.train.images import Augmentation, load_images

DATA = DataOptions(name="digits", n_train=101, n_val=53)


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


def test_an_output_that_is_no_number_makes_the_loss_none_too() -> None:
    sets = load_images(DATA, Augmentation(), seed=0)
    model = build_model("mlp", sets.in_shape, sets.classes, options={"hidden": [7]})
    next(model.parameters()).data[0, 0] = float("nan")
    loss, _ = evaluated(model, sets.val, sets.classes, Accelerator(cpu=True))
    assert loss != loss
