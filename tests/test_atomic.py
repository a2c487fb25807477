import pytest

from nfopt.atomic import is_partial, replacing, write_json, write_text


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "f.txt"
    write_text(file, "old")

    def fail_halfway():
        with replacing(file) as partial:
            partial.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail_halfway()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_until_the_block_ends_only_a_partial_file_is_there(tmp_path):
    file = tmp_path / "new" / "f.txt"
    with replacing(file) as partial:
        partial.write_text("x")
        assert not file.exists()
        assert [is_partial(path) for path in file.parent.iterdir()] == [True]
    assert [is_partial(path) for path in file.parent.iterdir()] == [False]


def test_not_a_number_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "f.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())
