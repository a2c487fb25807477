import pytest
import torch
from scipy.stats import kendalltau
from sklearn.linear_model import LinearRegression
from sklearn.metrics import accuracy_score, mean_squared_error

from nfopt.errors import UnknownNameError
from nfopt.experiments.question import ExperimentError
from nfopt.experiments.tasks import IMAGE_EDITS, Classification, Editing, Ranking, Regression
from nfopt.experiments.tasks.regression import tau
from nfopt.zoo import Zoo
from nfopt.zoo.siren import render
from tests.experiments.toys import SIREN, siren_zoo

ZOO = siren_zoo(31)
DRAWS = torch.Generator().manual_seed(0)


def reading(answer):
    """A network that answers by the nets themselves, so that batches cannot be mixed up unseen."""
    return lambda tensors: answer(tensors["0.bias"])


def on_test(zoo, fact):
    return zoo.facts[fact][zoo.side == 2]


def with_fact(**facts):
    return Zoo(ZOO.spec, ZOO.tensors, {**ZOO.facts, **facts}, ZOO.side)


def test_accuracy_is_scikit_learns():
    network = reading(lambda bias: bias[:, :2])
    found = Classification().scores(network, ZOO, Classification().targets(ZOO), "test")
    guesses = ZOO.tensors["0.bias"][ZOO.side == 2, :2].argmax(1)
    assert found["accuracy"] == pytest.approx(accuracy_score(on_test(ZOO, "label"), guesses))


def test_errors_of_a_regression_are_in_the_units_of_the_fact():
    task = Regression("frequency")
    train = ZOO.facts["frequency"][ZOO.side == 0]
    network = reading(lambda bias: bias[:, :1])
    found = task.scores(network, ZOO, task.targets(ZOO), "test")
    guesses = ZOO.tensors["0.bias"][ZOO.side == 2, 0] * train.std(correction=0) + train.mean()
    assert found["mse"] == pytest.approx(mean_squared_error(on_test(ZOO, "frequency"), guesses), rel=1e-4)


def test_answering_with_the_train_sides_mean_explains_nothing():
    task = Regression("frequency")
    nothing = reading(lambda bias: 0 * bias[:, :1])
    targets = task.targets(ZOO)
    assert task.scores(nothing, ZOO, targets, "train")["explained"] == pytest.approx(0, abs=1e-5)
    floor = task.floor(ZOO, targets, "test")[1]
    assert task.scores(nothing, ZOO, targets, "test")["mse"] == pytest.approx(floor)


def test_tau_is_scipys_and_ties_count():
    draws = torch.Generator().manual_seed(3)
    for _ in range(5):
        one = torch.randint(5, (23,), generator=draws).float()
        two = torch.randint(5, (23,), generator=draws).float()
        assert tau(one, two) == pytest.approx(kendalltau(one.numpy(), two.numpy()).statistic, abs=1e-6)


def test_tau_of_answers_without_an_order_is_zero_and_of_no_numbers_none():
    some = torch.rand(7, generator=DRAWS)
    assert tau(torch.ones(7), some) == 0.0
    assert tau(torch.full((7,), float("nan")), some) != tau(torch.full((7,), float("nan")), some)


def test_ranking_is_scored_by_the_order_of_the_answers():
    task = Ranking()
    there = torch.logit(ZOO.facts["test_accuracy"].clamp(1e-4, 1 - 1e-4))
    nets = {n: t.clone() for n, t in ZOO.tensors.items()}
    nets["0.bias"][:, 0] = there
    zoo = Zoo(ZOO.spec, nets, ZOO.facts, ZOO.side)
    found = task.scores(reading(lambda bias: bias[:, :1]), zoo, task.targets(zoo), "test")
    assert found["tau"] == pytest.approx(1.0)
    assert found["rmse"] < 1e-3
    worse = task.scores(reading(lambda bias: -bias[:, :1]), zoo, task.targets(zoo), "test")
    assert worse["tau"] == pytest.approx(-1.0)


@pytest.mark.parametrize("kind", ["bce", "mse"])
def test_the_loss_of_a_ranking_is_least_at_the_accuracy_itself(kind):
    task, value = Ranking(kind=kind), torch.tensor([0.2, 0.7])
    draws = torch.Generator()

    def loss(shift):
        return task.loss(lambda _: torch.logit(value)[:, None] + shift, {}, {"value": value}, draws).item()

    losses = [loss(shift) for shift in (-0.1, 0.0, 0.1)]
    assert losses[1] < min(losses[0], losses[2])


def test_facts_that_do_not_fit_the_task_are_refused():
    with pytest.raises(UnknownNameError, match="Did you mean 'frequency'"):
        Regression("frequence").targets(ZOO)
    with pytest.raises(ExperimentError, match="whole number"):
        Classification("frequency").targets(ZOO)
    with pytest.raises(ExperimentError, match="lies in 0"):
        Ranking("frequency").targets(ZOO)
    with pytest.raises(ExperimentError, match="one number per net"):
        Regression("image").targets(with_fact(image=torch.zeros(31, 2, 2)))
    with pytest.raises(ExperimentError, match="nothing can be learned"):
        Regression("same").targets(with_fact(same=torch.ones(31)))


def test_standardisation_is_that_of_the_train_side_alone():
    other = ZOO.facts["frequency"].clone()
    other[ZOO.side != 0] += 100
    one = Regression().targets(ZOO)
    two = Regression().targets(with_fact(frequency=other))
    assert torch.equal(one["mean"], two["mean"]) and torch.equal(one["scale"], two["scale"])


def editing(edit="dilate", size=7):
    return Editing(edit, size=size, omega=SIREN.omega_0)


@pytest.mark.parametrize("edit", sorted(IMAGE_EDITS))
def test_the_target_of_an_edit_is_the_operation_on_what_the_net_renders(edit):
    task = editing(edit)
    shown = render(ZOO.tensors, 7)
    wanted = IMAGE_EDITS[edit](shown)
    targets = task.targets(ZOO)
    torch.testing.assert_close(targets["image"].view_as(wanted), wanted)
    nothing = lambda tensors: {n: torch.zeros_like(t) for n, t in tensors.items()}  # noqa: E731
    found = task.scores(nothing, ZOO, targets, "test")
    assert found["mse"] == pytest.approx(task.floor(ZOO, targets, "test")[1])
    error = (shown - wanted)[ZOO.side == 2].square().mean().item()
    assert found["mse"] == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("edit", sorted(IMAGE_EDITS))
def test_the_best_change_of_grey_values_is_the_linear_regression_of_the_train_sides_pixels(edit):
    task, shown = editing(edit), render(ZOO.tensors, 7)
    wanted, pixels = (images.flatten(1).double().numpy() for images in (IMAGE_EDITS[edit](shown), shown))
    train, test = (ZOO.side == 0).numpy(), (ZOO.side == 2).numpy()
    line = LinearRegression().fit(pixels[train].reshape(-1, 1), wanted[train].flatten())
    error = mean_squared_error(wanted[test].flatten(), line.predict(pixels[test].reshape(-1, 1)))
    what = task.floor(ZOO, task.targets(ZOO), "test")[0]
    assert what.startswith("the nets left alone")
    assert float(what.split()[-1]) == pytest.approx(error, rel=5e-3)


def test_an_edit_that_hits_the_target_has_no_error():
    """The contrast of a SIREN can be raised exactly, by its last layer, about its mean."""
    task = editing("contrast")
    mean = render(ZOO.tensors, 7).mean((1, 2, 3))

    def exact(tensors):
        change = {n: torch.zeros_like(t) for n, t in tensors.items()}
        own = render(tensors, 7).mean((1, 2, 3))
        change["4.weight"] = 0.5 * tensors["4.weight"]
        change["4.bias"] = 0.5 * tensors["4.bias"] - 0.5 * own[:, None]
        return change

    assert task.scores(exact, ZOO, task.targets(ZOO), "test")["mse"] < 1e-10
    assert mean.std() > 0


def test_dilation_and_erosion_are_each_others_negatives_and_bound_the_image():
    images = torch.rand(3, 1, 7, 5, generator=DRAWS)
    wide, thin = IMAGE_EDITS["dilate"](images), IMAGE_EDITS["erode"](images)
    assert (wide >= images).all() and (thin <= images).all() and (wide > images).any()
    torch.testing.assert_close(thin, -IMAGE_EDITS["dilate"](-images))
    one = torch.zeros(1, 1, 7, 7)
    one[0, 0, 3, 3] = 1
    assert IMAGE_EDITS["dilate"](one).sum() == 9 and IMAGE_EDITS["erode"](one).sum() == 0


def test_raised_contrast_keeps_the_mean_and_widens_the_spread():
    images = torch.rand(3, 1, 7, 5, generator=DRAWS)
    raised = IMAGE_EDITS["contrast"](images)
    torch.testing.assert_close(raised.mean((1, 2, 3)), images.mean((1, 2, 3)))
    torch.testing.assert_close(raised.std((1, 2, 3)), 1.5 * images.std((1, 2, 3)))


def test_an_unknown_edit_is_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'dilate'"):
        Editing("dilatee")


def test_what_can_be_done_without_reading_is_scored_as_readers_are():
    guess, ones = Classification(), torch.zeros(31, dtype=torch.long)
    ones[ZOO.side == 0] = 1
    assert guess.floor(with_fact(label=ones), guess.targets(with_fact(label=ones)), "test")[1] == 0.0
    same = torch.ones(31, dtype=torch.long)
    assert guess.floor(with_fact(label=same), guess.targets(with_fact(label=same)), "test")[1] == 1.0
    constant = reading(lambda bias: 0 * bias[:, :1])
    rank = Ranking()
    found = rank.scores(constant, ZOO, rank.targets(ZOO), "test")["tau"]
    assert found == rank.floor(ZOO, rank.targets(ZOO), "test")[1]


def test_the_images_of_several_edited_nets_are_averaged():
    task = Editing("dilate", size=7, omega=SIREN.omega_0, nets=2)
    shift = torch.tensor([0.3, -0.1])
    edit = lambda tensors: {n: torch.ones_like(t)[..., None] * shift for n, t in tensors.items()}  # noqa: E731
    each = [render({n: t + s for n, t in ZOO.tensors.items()}, 7).flatten(1) for s in shift]
    found = task.render_edited(edit, ZOO.tensors)
    torch.testing.assert_close(found, (each[0] + each[1]) / 2, rtol=1e-4, atol=1e-5)
    assert task.question(ZOO).outputs == 2
    with pytest.raises(ExperimentError, match="1 or more edited nets"):
        Editing("dilate", nets=0)
