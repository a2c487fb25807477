"""What the guard did, as its report tells it."""

import torch

from nfopt.optim.guard_report import GuardReport, mark
from tests.optim.loops import backward, build, take_steps
from tests.optim.models import mlp


def test_marks_keep_the_first_and_the_last_step_of_an_intervention() -> None:
    first = last = torch.zeros(3)
    hits = {2: [True, False, False], 3: [True, True, False], 7: [False, True, False]}
    for step, hit in hits.items():
        first, last = mark(first, last, torch.tensor(hit), step)
    assert first.tolist() == [2, 3, 0]
    assert last.tolist() == [3, 7, 0]


def test_the_report_counts_damped_steps_per_tensor_with_their_shares_and_steps() -> None:
    model = mlp()
    optimizer = build(model, total_steps=100)
    for step in range(1, 26):
        loss = backward(model, optimizer)
        if step in (15, 20):
            for param in model[2].parameters():
                param.grad *= 1e5
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
    assert optimizer.guard_report() == GuardReport(0, 0, {}, {}, None, None)
    take_steps(model, optimizer, 3)
    assert str(optimizer.guard_report()) == "guard: no intervention in 3 steps"


def test_a_long_report_names_the_tensors_that_were_damped_most() -> None:
    damped = {f"layer {i}": i for i in range(8)}
    report = GuardReport(10, 3, damped, {n: i / 10 for n, i in damped.items()}, 1, 10)
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
