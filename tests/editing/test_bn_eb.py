import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import MultivariateNormal

from nfopt.editing import METHODS, EmpiricalBayesStatistics, Task, adapt
from nfopt.editing.methods.bn_eb import HIGHEST, LOWEST, PLACES, shrunk
from nfopt.editing.model_state import state_of
from nfopt.editing.norms import measure_statistics, statistics_of
from nfopt.errors import EditingError
from tests.editing.editor.editor_nets import deep_normed, images, traced


def fitted(model, shown, **options):
    """Return the model's state after the edit, by name; the model is not changed."""
    copied = deep_normed()
    copied.load_state_dict(model.state_dict())
    EmpiricalBayesStatistics(**options).fit(copied, Task(shown, None, None, torch.Generator()))
    return {name: value.detach() for name, value in state_of(copied).items()}


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", [0.01, 0.3, 5.0])
@pytest.mark.parametrize("diagonal", [0.3, 1.0])
def test_it_is_the_mean_of_the_shift_given_what_is_seen_at_the_most_likely_variance(diagonal, size):
    by_image = drawn(5, 11)
    by_image -= by_image.mean(1, keepdim=True)
    seen = size * drawn(5, seed=1)
    noise = torch.cov(by_image) / 11
    noise = torch.where(torch.eye(5, dtype=torch.bool), noise, (1 - diagonal) * noise)
    unit = torch.eye(5, dtype=torch.float64)
    variances = torch.logspace(LOWEST, HIGHEST, PLACES, dtype=torch.float64)
    chances = [
        MultivariateNormal(torch.zeros(5).double(), t * unit + noise).log_prob(seen) for t in variances
    ]
    best = variances[int(torch.stack(chances).argmax())]
    wanted = best * torch.linalg.solve(best * unit + noise, seen)
    torch.testing.assert_close(shrunk(seen, by_image, diagonal), wanted, rtol=1e-6, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 13))
def test_a_shift_is_only_ever_shortened(seed, count):
    by_image = drawn(5, count, seed=seed)
    by_image -= by_image.mean(1, keepdim=True)
    seen = drawn(5, seed=seed + 1)
    found = shrunk(seen, by_image, 0.3)
    assert found.norm() <= seen.norm() and found @ seen >= 0


def test_less_is_taken_in_directions_in_which_images_differ():
    along = torch.tensor([3.0, 4.0, 0.0, 0.0, 0.0], dtype=torch.float64) / 5
    across = torch.tensor([4.0, -3.0, 0.0, 0.0, 0.0], dtype=torch.float64) / 5
    by_image = 2 * along[:, None] * drawn(13) + 0.1 * drawn(5, 13, seed=1)
    by_image -= by_image.mean(1, keepdim=True)
    others = torch.tensor([0.0, 0.0, 0.5, -0.5, 0.5], dtype=torch.float64)
    found = shrunk(0.5 * along + 0.5 * across + others, by_image, 0.1)
    assert 0 < found @ along < 0.4
    assert 0.45 < found @ across < 0.5


def test_images_of_the_source_hardly_move_statistics_and_a_strong_shift_is_taken_whole():
    model, shown = deep_normed(), 2 * images(13) + 1  # as in the training of these nets
    before, clean, other = state_of(model), fitted(model, shown), fitted(model, 3 * shown + 2)
    moments = measure_statistics(model, 3 * shown + 2)["1"]
    replaced = measure_statistics(model, shown)["1"]
    name = "1.running_mean"
    assert (clean[name] - before[name]).norm() < 0.7 * (replaced.mean - before[name]).norm()
    assert (other[name] - moments.mean).norm() < 0.1 * (moments.mean - before[name]).norm()


def test_the_more_images_the_nearer_to_their_own_statistics():
    model = deep_normed()
    left = []
    for count in (5, 50, 500):
        shown = images(count) + 1
        moments = measure_statistics(model, shown)["1"]
        left.append(float((fitted(model, shown)["1.running_mean"] - moments.mean).norm()))
    assert left[0] > left[1] > left[2]


def test_renumbering_the_neurons_renumbers_the_statistics():
    model, shown = deep_normed(), images()
    spec, tensors = traced(model, shown)
    permutation = spec.sample(torch.Generator().manual_seed(1))
    permuted = deep_normed()
    permuted.load_state_dict(spec.act(permutation, tensors), strict=False)
    found = fitted(permuted, shown)
    wanted = spec.act(permutation, {name: fitted(model, shown)[name] for name in tensors})
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-7, atol=1e-8)


def test_the_order_of_the_images_does_not_matter():
    shown = images(11)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(2))
    one, other = (fitted(deep_normed(), x) for x in (shown, shown[order]))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e3])
@pytest.mark.parametrize("count", [1, 2])
def test_statistics_are_finite_and_variances_positive_for_odd_images(scale, count):
    model = deep_normed()
    edited = fitted(model, scale * images(count))
    for name in statistics_of(model):
        assert torch.isfinite(edited[name]).all()
        if name.endswith("running_var"):
            assert (edited[name] > -1e-5).all()


def test_it_changes_running_statistics_and_nothing_else_and_is_undone_to_the_bit():
    model, shown = deep_normed().float(), images().float()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    edit = adapt(model, shown, "bn-eb", gate=None)
    edit.apply(model)
    assert set(edit.changed) == set(statistics_of(model)) and edit.history[0].notes == {"layers": 2}
    edit.revert(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("method", ["bn-eb", "nf-bn"])
def test_features_without_positions_are_edited_too(method):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
        model(torch.randn(31, 7))
    edit = adapt(model.eval(), 3 + 2 * torch.randn(13, 7, generator=torch.Generator().manual_seed(1)), method)
    assert set(edit.changed) == {"1.running_mean", "1.running_var"}


def test_bad_options_and_nets_are_refused():
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(EditingError, match="diagonal of bn-eb"):
            EmpiricalBayesStatistics(diagonal=wrong)
    with pytest.raises(EditingError, match="bn-eb edits BatchNorm, and Sequential has no"):
        adapt(nn.Sequential(nn.Flatten(), nn.Linear(98, 3)), images().float(), "bn-eb")
    assert METHODS["bn-eb"] is EmpiricalBayesStatistics
