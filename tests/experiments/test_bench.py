import pytest
import torch

from nfopt.experiments.bench import Bench
from nfopt.experiments.forward import forward_of, omega_of
from nfopt.experiments.question import ExperimentError
from nfopt.experiments.readers import READERS
from nfopt.experiments.tasks import Ranking, Regression
from nfopt.models import build_model
from nfopt.symmetry import trace_permutation_spec
from nfopt.zoo import Zoo
from tests.experiments.toys import siren_zoo, values

CARD = {"architecture": {"inputs": 2, "hidden": [5, 3], "outputs": 1, "omega_0": 30.0}}


def zoo(nets=30, card=CARD):
    made = siren_zoo(nets, dtype=torch.float64)
    return Zoo(made.spec, made.tensors, made.facts, made.side, card)


@pytest.mark.parametrize("preparation", ["none", "aligned", "canonical"])
def test_prepared_nets_compute_what_they_did(preparation):
    bench = Bench(zoo(), Regression())
    prepared, _ = bench.prepared(preparation, None)
    torch.testing.assert_close(values(prepared.tensors), values(zoo().tensors), rtol=1e-9, atol=1e-9)
    changed = any(not torch.equal(prepared.tensors[n], t) for n, t in zoo().tensors.items())
    assert changed == (preparation != "none")


def test_fewer_training_nets_leave_the_other_sides_whole():
    bench = Bench(zoo(), Regression())
    some, targets = bench.prepared("none", 3)
    assert [int((some.side == i).sum()) for i in range(3)] == [3, 10, 10]
    assert len(targets["value"]) == 23
    first = (zoo().side == 0).nonzero().flatten()[:3]
    assert torch.equal(some.tensors["0.bias"][some.side == 0], zoo().tensors["0.bias"][first])
    with pytest.raises(ExperimentError, match="11 training nets are asked for, but the zoo has 10"):
        bench.prepared("none", 11)


def test_only_readers_that_ask_for_it_are_trained_on_renumbered_nets():
    bench = Bench(zoo(), Regression())
    assert bench.augment(READERS["mlp"]) is None
    augment = bench.augment(READERS["mlp_permuted"])
    draws = torch.Generator().manual_seed(0)
    one, two = augment(zoo().tensors, draws), augment(zoo().tensors, draws)
    torch.testing.assert_close(values(one), values(zoo().tensors), rtol=1e-9, atol=1e-9)
    assert not torch.equal(one["0.bias"], two["0.bias"])
    orders = {tuple(one["0.bias"][i].argsort().tolist()) for i in range(30)}
    assert len(orders) > 20


def test_readers_that_run_the_nets_need_a_card_that_says_what_they_compute():
    known = zoo()
    forward, inputs = forward_of(known)
    points = torch.linspace(-1, 1, 14, dtype=torch.float64).view(7, 2)
    torch.testing.assert_close(forward(known.tensors, points), values(known.tensors))
    assert (inputs, omega_of(known)) == (2, 30.0)
    silent = zoo(card={})
    assert forward_of(silent) == (None, 0)
    with pytest.raises(ExperimentError, match="learned probes runs the nets"):
        Bench(silent, Regression()).check(["probes"])
    with pytest.raises(ExperimentError, match="tells of no SIREN"):
        Bench(silent, Regression()).prepared("canonical", None)


def test_a_zoo_without_a_side_makes_no_experiment():
    with pytest.raises(ExperimentError, match="0 for validation"):
        Bench(zoo().subset(zoo().side != 1), Regression())


def classifier_zoo(name="small-cnn"):
    draws = torch.Generator().manual_seed(0)
    module = build_model("small-cnn", (1, 8, 8), 3, seed=0, options={})
    spec = trace_permutation_spec(module, torch.zeros(2, 1, 8, 8))
    tensors = {n: t + 0.1 * torch.randn(4, *t.shape, generator=draws) for n, t in module.state_dict().items()}
    card = {"in_shape": [1, 8, 8], "recipe": {"nets": {"model": {"name": name, "options": {}}}}}
    facts = {"test_accuracy": torch.rand(4, generator=draws)}
    return Zoo(spec, tensors, facts, torch.tensor([0, 0, 1, 2]), card), module


def test_classifiers_are_run_as_the_model_that_their_card_names():
    made, module = classifier_zoo()
    forward, inputs = forward_of(made)
    images = torch.randn(5, inputs, generator=torch.Generator().manual_seed(1))
    found = forward(made.tensors, images)
    for i in range(4):
        module.load_state_dict(made.net(i))
        wanted = module(images.view(5, 1, 8, 8)).log_softmax(-1)
        torch.testing.assert_close(found[i], wanted, rtol=1e-4, atol=1e-5)
    network = READERS["probes"].make(Ranking().question(made, forward, inputs), 5)
    network.fit_statistics(made.tensors)
    assert network(made.tensors).shape == (4, 1)


def test_canonical_classifiers_are_checked_to_compute_what_they_did():
    made, _ = classifier_zoo()
    bench = Bench(made, Ranking())
    found, _ = bench.prepared("canonical", None)
    images = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    run = bench.question.forward
    torch.testing.assert_close(run(found.tensors, images), run(made.tensors, images), rtol=1e-3, atol=1e-4)
    bench = Bench(made, Ranking())
    sigmoid = lambda tensors, inputs: run(tensors, inputs).sigmoid() + tensors["0.bias"].sum()  # noqa: E731
    object.__setattr__(bench.question, "forward", sigmoid)
    with pytest.raises(ExperimentError, match="no ReLU nets"):
        bench.prepared("canonical", None)


@pytest.mark.parametrize("name", ["no-such-model", "mlp", "tests.experiments.toys:ConvNet"])
def test_a_card_that_names_another_model_or_code_to_import_says_nothing(name):
    made, _ = classifier_zoo(name)
    assert forward_of(made) == (None, 0)
