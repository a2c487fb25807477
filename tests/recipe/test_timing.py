import pytest
import torch

from nfopt.recipe.timing import interleaved_seconds

CPU = torch.device("cpu")


def test_every_action_runs_equally_often_and_none_goes_first_always():
    log: list[str] = []
    actions = {name: (lambda name=name: log.append(name)) for name in ("a", "b", "c")}
    seconds = interleaved_seconds(actions, rounds=5, repeats=2, device=CPU)
    assert set(seconds) == {"a", "b", "c"}
    assert [log.count(name) for name in actions] == [12, 12, 12]
    assert {log[turn * 6] for turn in range(6)} == {"a", "b", "c"}


def test_the_median_of_the_counted_turns_is_returned(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("nfopt.recipe.timing.time.perf_counter", lambda: float(next(clock)))
    seconds = interleaved_seconds({"a": lambda: None, "b": lambda: None}, rounds=3, repeats=4, device=CPU)
    assert seconds == pytest.approx({"a": 0.25, "b": 0.25})
