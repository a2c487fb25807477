import json

import pytest
import torch

from nfopt.experiments.exhibits import IMAGES, exhibit
from nfopt.experiments.tasks import Classification, Editing, Embedding, Ranking, Regression
from nfopt.zoo.siren import render
from tests.experiments.toys import SIREN, siren_zoo

ZOO = siren_zoo(31)
TEST = ZOO.side == 2


def shown(task, network):
    found = exhibit(network, task, ZOO, task.targets(ZOO))
    json.dumps(found, allow_nan=False)
    return found


def test_a_regression_shows_answers_and_facts_in_the_facts_units():
    found = shown(Regression(), lambda tensors: torch.zeros(len(tensors["0.bias"]), 1))
    train = ZOO.facts["frequency"][ZOO.side == 0].mean().item()
    assert found["wanted"] == pytest.approx(ZOO.facts["frequency"][TEST].tolist(), abs=1e-3)
    assert found["found"] == pytest.approx([train] * int(TEST.sum()), abs=1e-3)


def test_a_ranking_shows_accuracies():
    found = shown(Ranking(), lambda tensors: tensors["0.bias"][:, :1])
    assert found["found"] == pytest.approx(ZOO.tensors["0.bias"][TEST, 0].sigmoid().tolist(), abs=1e-3)


def test_an_embedding_shows_its_two_widest_directions():
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
    flat = torch.tensor([5.0, 1.0, 0.0])
    task = Embedding(lambda tensors, draws: tensors, ("frequency",))
    found = shown(task, lambda tensors: (tensors["0.bias"][:, :3] * flat) @ turn)
    points = torch.tensor(found["points"])
    wide = ZOO.tensors["0.bias"][TEST][:, :2] * flat[:2]
    wide = wide - wide.mean(0)
    # Rotated or not, distances within the plane are what they were.
    torch.testing.assert_close(torch.cdist(points, points), torch.cdist(wide, wide), atol=1e-2, rtol=1e-2)
    assert found["names"] == ["frequency"] and len(found["facts"]) == len(points)


def test_an_edit_shows_the_images_of_the_nets_before_and_after():
    task = Editing("erode", size=5, omega=SIREN.omega_0)
    found = shown(task, lambda tensors: {n: torch.ones_like(t) for n, t in tensors.items()})
    nets = {n: t[TEST][:IMAGES] for n, t in ZOO.tensors.items()}
    before, after = render(nets, 5)[:, 0], render({n: t + 1 for n, t in nets.items()}, 5)[:, 0]
    torch.testing.assert_close(torch.tensor(found["before"]), before, atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.tensor(found["after"]), after, atol=1e-3, rtol=0)


def test_a_classification_has_nothing_to_show_nor_has_a_zoo_without_a_test_side():
    assert shown(Classification(), lambda tensors: tensors["0.bias"]) == {}
    task, some = Regression(), ZOO.subset(~TEST)
    assert exhibit(lambda tensors: tensors["0.bias"][:, :1], task, some, task.targets(some)) == {}


def test_answers_that_are_no_numbers_are_not_shown():
    assert shown(Regression(), lambda tensors: torch.full((len(tensors["0.bias"]), 1), float("nan"))) == {}
