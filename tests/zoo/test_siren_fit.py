import pytest
import torch

from nfopt.zoo import FitConfig, Machine, Siren, SirenConfig, ZooError, psnr_db
from nfopt.zoo.siren import grid
from nfopt.zoo.siren_fit import fit_sirens

CONFIG = SirenConfig(2, (5, 3), 1, omega_0=7.0)
FIT = FitConfig(learning_rate=1e-2, max_steps=53, stop_psnr_db=16.0)
SIDES = (5, 7)


def problem(nets, dtype):
    generator = torch.Generator().manual_seed(0)
    start = torch.stack([CONFIG.start(torch.Generator().manual_seed(i)) for i in range(nets)])
    targets = torch.rand(nets, 35, generator=generator) * torch.linspace(0.2, 1.5, nets).unsqueeze(1)
    return targets.to(dtype), start.to(dtype)


def fitted(targets, start, fit=FIT, *, lanes=3, workers=1, **options):
    machine = Machine(lanes=lanes, workers=workers)
    return fit_sirens(CONFIG, grid(*SIDES), targets, start, fit, grid_shape=SIDES, machine=machine, **options)


def trained_alone(seed, target):
    """Train one ordinary module with torch's own Adam, stopping where the protocol says."""
    model = Siren(CONFIG, seed=seed).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=FIT.learning_rate)
    for step in range(FIT.max_steps + 1):
        error = (model(grid(*SIDES).double()).squeeze(1) - target).square().mean()
        if psnr_db(error.detach()) >= FIT.stop_psnr_db or step == FIT.max_steps:
            return model, step, error.item()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    raise AssertionError


def test_every_net_is_trained_and_stopped_as_in_a_loop_of_modules():
    targets, start = problem(7, torch.float64)
    result = fitted(targets, start)
    steps = result.steps.tolist()
    assert 0 < min(steps) < FIT.max_steps and FIT.max_steps in steps, "some stop early and some do not"
    for i in range(7):
        model, step, error = trained_alone(i, targets[i])
        assert steps[i] == step
        assert result.mse[i].item() == pytest.approx(error, rel=1e-9)
        flat = torch.cat([p.detach().flatten() for p in model.parameters()])
        torch.testing.assert_close(result.flat[i], flat, rtol=0, atol=1e-9)


def test_a_net_depends_neither_on_the_others_nor_on_the_number_of_threads():
    targets, start = problem(11, torch.float32)
    whole = fitted(targets, start)
    for options in ({"workers": 2}, {"workers": 3}):
        other = fitted(targets, start, **options)
        assert torch.equal(other.flat, whole.flat) and torch.equal(other.steps, whole.steps)
    for part in (slice(0, 4), slice(4, 11), slice(10, 11)):
        alone = fitted(targets[part], start[part])
        assert torch.equal(alone.flat, whole.flat[part]) and torch.equal(alone.mse, whole.mse[part])


def test_more_lanes_change_the_last_digits_at_most():
    # A product of more nets may be summed in another order, so that equal bits are not promised here.
    targets, start = problem(11, torch.float64)
    whole = fitted(targets, start)
    for lanes in (1, 2, 16):
        other = fitted(targets, start, lanes=lanes)
        torch.testing.assert_close(other.flat, whole.flat, rtol=0, atol=1e-9)
        assert torch.equal(other.steps, whole.steps)


def test_a_net_that_is_good_enough_at_once_is_left_as_it_is():
    targets, start = problem(3, torch.float32)
    result = fitted(targets, start, FitConfig(1e-2, 53, stop_psnr_db=-60.0))
    assert torch.equal(result.flat, start)
    assert result.steps.tolist() == [0, 0, 0]


def test_without_a_threshold_all_steps_are_taken():
    targets, start = problem(3, torch.float32)
    assert fitted(targets, start, FitConfig(1e-2, 11, None)).steps.tolist() == [11] * 3
    assert torch.equal(fitted(targets, start, FitConfig(1e-2, 0, None)).flat, start)


def test_the_peak_decides_when_a_signal_is_good_enough():
    targets, start = problem(3, torch.float64)
    peak = torch.tensor([1.0, 0.01, 100.0], dtype=torch.float64)
    scaled = fitted(targets, start, peak=peak)
    assert scaled.steps[0] == fitted(targets, start).steps[0]
    assert scaled.steps[1] == FIT.max_steps
    assert scaled.steps[2] == 0
    assert psnr_db(scaled.mse, peak)[2] >= FIT.stop_psnr_db


def test_progress_counts_every_net_once_and_an_error_in_it_ends_the_work():
    targets, start = problem(11, torch.float32)
    heard = []
    fitted(targets, start, report=heard.append)
    assert heard == sorted(set(heard)) and heard[-1] == 11

    class StopError(Exception):
        pass

    def stop(done):
        raise StopError

    with pytest.raises(StopError):
        fitted(targets, start, workers=2, report=stop)


def test_torch_has_as_many_threads_afterwards_as_before():
    before = torch.get_num_threads()
    fitted(*problem(3, torch.float32))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("arguments", [{"learning_rate": 0.0}, {"max_steps": -1}])
def test_a_fit_without_sense_is_refused(arguments):
    with pytest.raises(ZooError, match="a fit needs"):
        FitConfig(**arguments)


def test_signal_to_noise_of_a_known_error():
    assert psnr_db(torch.tensor([1e-4, 1.0, 0.0])).tolist() == pytest.approx([40, 0, 200])
    assert psnr_db(torch.tensor(1e-4), 10.0).item() == pytest.approx(60)
