"""What the first of several processes decides, in one process."""

import pytest

from nfopt.errors import DataError, RecipeError
from nfopt.recipe import processes
from nfopt.recipe.processes import from_first, is_first, process_count, wait_for_all


@pytest.fixture
def second_of_two(monkeypatch) -> list[list]:
    """This process is the second of two; the list is what is broadcast to it, in order."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    said: list[list] = []

    def broadcast(values: list) -> None:
        values[:] = said.pop(0)

    monkeypatch.setattr(processes, "broadcast_object_list", broadcast)
    return said


def test_without_a_launcher_one_process_decides_and_waits_for_nobody(monkeypatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert process_count() == 1
    assert is_first()
    assert from_first(lambda: 3) == 3
    wait_for_all()


def test_a_launcher_s_rank_tells_the_first(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "5")
    for rank in range(5):
        monkeypatch.setenv("RANK", str(rank))
        assert is_first() == (rank == 0)


def test_another_process_hears_the_decision_and_does_not_decide(second_of_two) -> None:
    second_of_two.append(["theirs", None])
    assert from_first(lambda: pytest.fail("asked a follower")) == "theirs"


def test_an_error_of_the_first_is_raised_in_every_process(second_of_two) -> None:
    second_of_two.append([None, "the output folder exists already"])
    with pytest.raises(RecipeError, match="exists already"):
        from_first(lambda: pytest.fail("asked a follower"))


def test_the_first_tells_its_error_before_it_fails(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    told: list = []
    monkeypatch.setattr(processes, "broadcast_object_list", told.extend)

    def absent() -> None:
        raise DataError("nothing there")

    with pytest.raises(RecipeError, match="nothing there"):
        from_first(absent)
    assert told == [None, "nothing there"]
