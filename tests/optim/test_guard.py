"""The guard: its pure parts, and what it reports of itself."""

import torch

from nfopt.optim import guard
from tests.optim.loops import backward, build, take_steps
from tests.optim.models import mlp


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_trust_falls_from_one_to_zero_as_the_gradient_grows() -> None:
    usual, step = vector(0, 0, 0, 0), vector(100, 100, 100, 100)
    current = vector(1.0, guard.DAMP_FROM, (guard.DAMP_FROM + guard.DAMP_TO) / 2, guard.DAMP_TO + 1)
    assert torch.allclose(guard.trust(usual, current, step), vector(1, 1, 0.5, 0))


def test_the_first_steps_are_never_anomalous() -> None:
    usual, current, step = vector(0.0), vector(50.0), vector(3.0)
    assert guard.trust(usual, current, step) == 1
    assert guard.clip_factor(usual, current, step) == 1


def test_from_the_fifth_step_on_an_absurd_gradient_is_clipped_but_the_rule_still_trusted() -> None:
    usual, current, step = vector(0.0), vector(guard.DAMP_TO + 3.0), vector(float(guard.CLIP_AFTER + 1))
    assert torch.allclose(guard.clip_factor(usual, current, step).log(), vector(-3.0))
    assert guard.trust(usual, current, step) == 1


def test_clipping_brings_a_gradient_down_to_the_bound() -> None:
    factor = guard.clip_factor(vector(0.0), vector(guard.DAMP_TO + 3.0), vector(100.0))
    assert torch.allclose(factor.log(), vector(-3.0))


def test_the_usual_norm_follows_slow_changes_but_not_one_outlier() -> None:
    usual = vector(0.0)
    for step in range(200):
        usual = guard.update_usual(usual, vector(0.01 * step), vector(float(step)))
    assert 1.5 < float(usual) < 2.0
    jumped = guard.update_usual(usual, vector(100.0), vector(200.0))
    assert float(jumped - usual) <= (1 - guard.MEMORY) * guard.DAMP_FROM + 1e-12


def test_the_log_norm_of_a_zero_gradient_is_finite() -> None:
    assert guard.log_norm(torch.zeros(5)).isfinite().all()


def test_marks_keep_the_first_and_the_last_step_of_an_intervention() -> None:
    first = last = torch.zeros(3)
    hits = {2: [True, False, False], 3: [True, True, False], 7: [False, True, False]}
    for step, hit in hits.items():
        first, last = guard.mark(first, last, torch.tensor(hit), step)
    assert first.tolist() == [2, 3, 0]
    assert last.tolist() == [3, 7, 0]


def test_the_report_counts_damped_steps_per_tensor_with_their_shares_and_steps() -> None:
    model = mlp()
    optimizer = build(model, total_steps=100)
    for step in range(1, 26):
        loss = backward(model, optimizer)
        if step in (15, 20):
            for param in model[2].parameters():
                param.grad *= 1e3
        optimizer.step()
        assert loss.isfinite()
    report = optimizer.guard_report()
    assert report.steps == 25
    assert report.skipped == 0
    assert {name: count for name, count in report.damped.items() if count} == {"2.weight": 2, "2.bias": 2}
    assert report.damped_share["2.weight"] == 2 / 25
    assert (report.first_step, report.last_step) == (15, 20)
    assert "2.weight in 2 (8.0%)" in str(report)
    assert "steps 15" not in str(report)
    assert "from step 15 to 20" in str(report)


def test_without_interventions_the_report_says_so_and_is_empty_before_the_first_step() -> None:
    model = mlp()
    optimizer = build(model)
    assert optimizer.guard_report() == guard.GuardReport(0, 0, {}, {}, None, None)
    take_steps(model, optimizer, 3)
    assert str(optimizer.guard_report()) == "guard: no intervention in 3 steps"


def test_a_long_report_names_the_tensors_that_were_damped_most() -> None:
    damped = {f"layer {i}": i for i in range(8)}
    report = guard.GuardReport(10, 3, damped, {n: i / 10 for n, i in damped.items()}, 1, 10)
    assert "3 of 10 steps skipped" in str(report)
    assert "layer 7 in 7 (70.0%)" in str(report)
    assert "and 2 more tensors" in str(report)
    assert "layer 0" not in str(report)


def test_the_report_survives_saving_and_loading() -> None:
    model = mlp()
    optimizer = build(model)
    take_steps(model, optimizer, 12)
    backward(model, optimizer)
    model[0].weight.grad *= 1e3
    optimizer.step()
    twin = build(mlp())
    twin.load_state_dict(optimizer.state_dict())
    assert twin.guard_report() == optimizer.guard_report()
    assert twin.guard_report().damped["0.weight"] == 1


def test_a_gradient_of_zero_says_nothing_of_the_usual_and_the_first_other_one_sets_it() -> None:
    silent, loud = guard.log_norm(torch.zeros(1, dtype=torch.float64)), vector(-3.0)
    usual = vector(0.0)
    for step in range(50):
        usual = guard.update_usual(usual, silent, vector(float(step)))
        assert guard.trust(usual, loud, vector(float(step))) == 1
        assert guard.clip_factor(usual, loud, vector(float(step))) == 1
    usual = guard.update_usual(usual, loud, vector(50.0))
    assert usual == loud
    assert guard.update_usual(usual, silent, vector(51.0)) == loud
    assert guard.trust(usual, loud + 5, vector(52.0)) == 0


def test_a_layer_that_wakes_up_late_moves_at_once_like_the_others() -> None:
    moved = {}
    for silent_steps in (0, 50):
        model = mlp()
        optimizer = build(model, total_steps=None, checkpoint="nominal", example_inputs=torch.zeros(2, 5))
        generator = torch.Generator().manual_seed(0)
        for step in range(53):
            for name, param in model.named_parameters():
                param.grad = torch.randn(param.shape, generator=generator)
                if name.startswith("2.") and step < silent_steps:
                    param.grad.zero_()
            before = model[2].weight.detach().clone()
            optimizer.step()
        moved[silent_steps] = float((model[2].weight.detach() - before).norm())
    assert 0.5 < moved[50] / moved[0] < 2.0
