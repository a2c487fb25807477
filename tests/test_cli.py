import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nfopt.cli import app
from nfopt.recipe import load_recipe, run_recipe
from nfopt.symmetry import PermutationSpec
from tests.recipe.toy_job import registered

SMALL = """
kind: compare
data: {name: digits, n_train: 101, n_val: 53}
model: {name: mlp, options: {hidden: [7, 5]}}
total_steps: 60
batch_size: 13
evaluate_every: 5
seeds: [0, 1]
device: cpu
optimizers:
  nfopt: {name: nfopt, checkpoint: nominal}
  adamw: {name: adamw, tune: {lr: [1e-3, 1e-2, 1e-1]}}
reference: adamw
"""


@pytest.fixture
def nfopt(monkeypatch, tmp_path):
    """Return a function that calls the command line in an empty folder, with the toy job at hand."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text("kind: toy\nrepeats: 3\n")
    (tmp_path / "bad.yaml").write_text("kind: toy\nrepaets: 3\n")
    with registered(monkeypatch) as toy:

        def call(*arguments):
            return CliRunner().invoke(app, [str(argument) for argument in arguments])

        call.toy = toy
        yield call


def test_the_version_is_said(nfopt):
    assert re.fullmatch(r"nfopt \d+\.\d+.*\n", nfopt("--version").stdout)


def test_running_a_recipe_prints_its_table_and_where_the_results_lie(nfopt):
    result = nfopt("run", "toy.yaml")
    assert result.exit_code == 0
    assert "square" in result.stdout
    assert "in runs/toy/: results.json, resolved.yaml" in result.stdout
    assert "count: 3/3" in result.stderr


def test_an_override_reaches_the_recipe(nfopt, tmp_path):
    assert nfopt("run", "toy.yaml", "repeats=5", "output=out").exit_code == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == {"squares": [0, 1, 4, 9, 16]}


def test_a_dry_run_prints_recipe_and_plan_and_does_nothing(nfopt, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    result = nfopt("run", "toy.yaml", "--dry-run")
    assert result.exit_code == 0
    assert "repeats: 3" in result.stdout
    assert "count to 3" in result.stdout
    assert sorted(tmp_path.rglob("*")) == before
    assert nfopt.toy.computed == []


def test_a_bad_recipe_is_one_message_without_a_traceback_and_exit_code_2(nfopt):
    result = nfopt("run", "bad.yaml")
    assert result.exit_code == 2
    assert "bad.yaml:2: repaets: is an unknown key. Did you mean 'repeats'?" in result.stderr
    assert "Traceback" not in result.output


def test_an_absent_recipe_is_an_error_for_people(nfopt):
    result = nfopt("run", "gone.yaml")
    assert result.exit_code == 2
    assert "there is no such file" in result.stderr


def test_a_bug_of_ours_is_not_dressed_up_as_bad_input(nfopt, monkeypatch):
    def broken(i):
        raise ZeroDivisionError

    monkeypatch.setattr(nfopt.toy, "square", broken)
    assert isinstance(nfopt("run", "toy.yaml").exception, ZeroDivisionError)


def test_validate_says_every_fault_of_every_file_and_exits_with_1(nfopt):
    result = nfopt("validate", "toy.yaml", "bad.yaml", "gone.yaml")
    assert result.exit_code == 1
    assert "toy.yaml: no faults" in result.stdout
    assert "bad.yaml:2: repaets" in result.stdout
    assert "repeats: is missing" in result.stdout
    assert "gone.yaml: cannot be read" in result.stdout
    assert nfopt("validate", "toy.yaml").exit_code == 0


def test_ctrl_c_says_how_to_go_on_and_going_on_works(nfopt):
    nfopt.toy.stop_at = 2
    result = nfopt("run", "toy.yaml", "inner.width=5")
    assert result.exit_code == 130
    assert "nfopt run toy.yaml inner.width=5 --resume" in result.stderr
    nfopt.toy.stop_at = None
    assert nfopt("run", "toy.yaml", "inner.width=5", "--resume").exit_code == 0
    assert nfopt.toy.computed == [0, 1, 2]


def test_resuming_a_complete_run_shows_its_results_again(nfopt):
    nfopt("run", "toy.yaml")
    assert "complete already" in nfopt("run", "toy.yaml", "--resume").stdout


def test_a_taken_output_folder_is_refused_with_the_way_out(nfopt):
    nfopt("run", "toy.yaml", "output=out")
    result = nfopt("run", "toy.yaml", "output=out")
    assert result.exit_code == 2
    assert "--resume" in result.stderr
    assert "output=" in result.stderr


def test_inspect_shows_groups_coverage_and_reasons_and_writes_the_spec(nfopt, tmp_path):
    result = nfopt("inspect", "mlp", "--input", "1,8,8", "--verify", "--json", "spec.json")
    assert result.exit_code == 0, result.output
    assert "2 groups" in result.stdout
    assert "% of the parameters" in result.stdout
    assert "model output" in result.stdout
    assert "passed" in result.stdout
    assert len(PermutationSpec.from_json((tmp_path / "spec.json").read_text()).groups) == 2


def test_inspect_finds_a_model_of_ones_own_in_the_current_folder(nfopt, tmp_path, monkeypatch):
    (tmp_path / "mine_here.py").write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Linear(3, 5)\n"
    )
    monkeypatch.syspath_prepend("")
    result = nfopt("inspect", "mine_here:net", "--input", "3")
    assert result.exit_code == 0, result.output
    assert "20 parameters" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["resnet19"], "Did you mean"),
        (["mlp", "--input", "3x64"], "3,64,64"),
        (["resnet10t", "--input", "3,7"], "failed on example inputs"),
    ],
)
def test_inspecting_what_cannot_be_inspected_is_an_error_for_people(nfopt, arguments, part):
    result = nfopt("inspect", *arguments)
    assert result.exit_code == 2, result.output
    assert part.lower() in result.stderr.lower()


def test_list_names_every_plugin(nfopt):
    listed = nfopt("list").stdout
    for name in ("compare", "meta_train", "toy", "digits", "cifar10", "mlp", "cnn", "nfopt", "adamw", "muon"):
        assert re.search(rf"^  {name}\b", listed, re.MULTILINE), name


def test_every_line_fits_into_80_columns(nfopt, tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    for arguments in (["list"], ["inspect", "resnet10t"], ["run", "small.yaml", "total_steps=3", "output=o"]):
        result = nfopt(*arguments)
        assert result.exit_code == 0, result.output
        assert max(len(line.rstrip()) for line in result.stdout.splitlines()) <= 80


def start(folder, *arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "80"}
    command = [sys.executable, "-c", "from nfopt.cli import main; main()", *arguments]
    # A shell starts background jobs with Ctrl-C ignored, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return subprocess.Popen(
            command, cwd=folder, env=environment, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
    finally:
        signal.signal(signal.SIGINT, before)


def numbers(folder):
    return json.loads((folder / "results.json").read_text())


def kill_and_resume(folder: Path, kills: int, seed: int) -> None:
    """Kill runs at random moments of their work, then let one end; the moments are counted in lines."""
    (folder / "small.yaml").write_text(SMALL)
    chosen = random.Random(seed)
    for _ in range(kills):
        process = start(folder, "run", "small.yaml", "output=killed", "--resume")
        assert process.stderr is not None
        for _ in range(chosen.randint(1, 4)):
            process.stderr.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0)
    process = start(folder, "run", "small.yaml", "output=killed", "--resume")
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "results.json" in output


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "small.yaml").write_text(SMALL)
    return numbers(run_recipe(load_recipe(folder / "small.yaml", [f"output={folder / 'whole'}"])).folder)


def test_a_run_that_is_killed_and_resumed_ends_with_the_same_numbers(tmp_path, undisturbed):
    kill_and_resume(tmp_path, kills=2, seed=0)
    assert numbers(tmp_path / "killed") == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_however_often_a_run_is_killed_it_ends_with_the_same_numbers(tmp_path, undisturbed, seed):
    kill_and_resume(tmp_path, kills=6, seed=seed)
    assert numbers(tmp_path / "killed") == undisturbed


def test_ctrl_c_in_a_terminal_ends_cleanly(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    process = start(tmp_path, "run", "small.yaml", "total_steps=100000", "output=o")
    assert process.stderr is not None
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "nfopt run small.yaml total_steps=100000 output=o --resume" in errors
    assert "Traceback" not in errors
