import math

import pytest
import torch
from sklearn.linear_model import LinearRegression
from torch.nn import functional as F

from nfopt.experiments.question import ExperimentError
from nfopt.experiments.tasks import Embedding
from nfopt.experiments.tasks.embedding import info_nce, probe
from nfopt.zoo import Zoo
from tests.experiments.toys import siren_zoo


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_loss_is_the_cross_entropy_of_finding_each_views_partner_written_out():
    both = drawn(10, 3)
    unit = [F.normalize(z, dim=0) for z in both]
    total = 0.0
    for i in range(10):
        alike = [math.exp((unit[i] @ unit[j]).item() / 0.3) for j in range(10)]
        total -= math.log(alike[(i + 5) % 10] / (sum(alike) - alike[i]))
    assert info_nce(both, 0.3).item() == pytest.approx(total / 10)


def test_views_alike_and_nets_apart_have_no_loss_and_collapse_has_that_of_guessing():
    apart = torch.eye(7, dtype=torch.float64).repeat(2, 1)
    assert info_nce(apart, 0.05) < 1e-6
    assert info_nce(torch.ones(14, 3), 0.05).item() == pytest.approx(math.log(13), rel=1e-4)


def test_the_probe_is_scikit_learns_linear_regression():
    train, others, weights = drawn(50, 3), drawn(11, 3, seed=1), drawn(3, 2, seed=2)
    wanted = train @ weights + 5 + 0.1 * drawn(50, 2, seed=3)
    found = probe(train, wanted, others)
    model = LinearRegression().fit(train.numpy(), wanted.numpy())
    torch.testing.assert_close(found, torch.from_numpy(model.predict(others.numpy())), rtol=1e-4, atol=1e-4)


def test_a_collapsed_embedding_is_probed_to_the_mean():
    wanted = drawn(50, 2)
    found = probe(torch.ones(50, 3, dtype=torch.float64), wanted, torch.ones(7, 3, dtype=torch.float64))
    torch.testing.assert_close(found, wanted.mean(0).expand(7, 2))


def test_facts_of_the_other_sides_do_not_reach_the_probe():
    zoo = siren_zoo(60)
    task = Embedding(lambda tensors, draws: tensors, ("frequency",), dimensions=2)
    network = lambda tensors: tensors["0.bias"][:, :2]  # noqa: E731
    one = task.scores(network, zoo, task.targets(zoo), "test")["mse"]
    facts = {**zoo.facts, "frequency": zoo.facts["frequency"] + 100 * (zoo.side == 1)}
    other = Zoo(zoo.spec, zoo.tensors, facts, zoo.side)
    assert task.scores(network, other, task.targets(other), "test")["mse"] == one


def test_a_collapsed_embedding_scores_what_no_embedding_does():
    zoo = siren_zoo(60)
    task = Embedding(lambda tensors, draws: tensors, ("frequency",), dimensions=2)
    collapsed = lambda tensors: torch.ones(len(tensors["0.bias"]), 2)  # noqa: E731
    targets = task.targets(zoo)
    found = task.scores(collapsed, zoo, targets, "test")["mse"]
    assert found == pytest.approx(task.floor(zoo, targets, "test")[1], rel=1e-5)


def test_the_two_views_are_drawn_apart_and_partners_are_of_one_net():
    zoo, seen = siren_zoo(9), []

    def view(tensors, draws):
        shift = torch.rand(1, generator=draws)
        return {name: tensor + shift for name, tensor in tensors.items()}

    def network(tensors):
        seen.append(tensors["0.bias"])
        return tensors["0.bias"][:, :2]

    task = Embedding(view, ("frequency",), dimensions=2)
    task.loss(network, zoo.tensors, task.targets(zoo), torch.Generator().manual_seed(0))
    first, second = seen[0].chunk(2)
    shift = second - first
    assert shift.abs().min() > 0
    torch.testing.assert_close(shift, shift[:1, :1].expand_as(shift))


def test_an_embedding_without_facts_or_dimensions_is_refused():
    for options in ({"facts": ()}, {"dimensions": 1}, {"temperature": 0.0}):
        with pytest.raises(ExperimentError):
            Embedding(lambda tensors, draws: tensors, **options)
