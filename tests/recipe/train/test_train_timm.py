"""The job `train`: one classifier, one optimizer, in one process or many."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from nfopt.data import load_data
from nfopt.errors import NfoptError, RecipeError
from nfopt.metrics import evaluate
from nfopt.models import build_model
from nfopt.progress import Progress
from nfopt.recipe import load_recipe, recipe_faults, run_recipe
from tests.recipe.train.test_images import pictures

ROOT = Path(__file__).parents[3]
SMALL = """
kind: train
data: {name: digits, n_train: 101, n_val: 53}
model: {name: mlp, options: {hidden: [7, 5]}}
optimizer: {name: nfopt, checkpoint: nominal}
epochs: 3
batch_size: 20
save_every: 2
device: cpu
"""
# BatchNorm, dropout, augmentation, a scheduler, accumulation and workers: all that has a state to lose.
RICH = """
kind: train
data: {name: digits, n_train: 101, n_val: 53}
model: {name: "tests.recipe.train.test_train_timm:dropping"}
optimizer: {name: adamw, lr: 1e-2, schedule: cosine, warmup: 0.1}
epochs: 3
batch_size: 20
accumulate: 2
max_grad_norm: 1.0
label_smoothing: 0.1
augment: {pad: 1, flip: true, min_area: 0.6}
save_every: 2
device: cpu
"""


def dropping(in_shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_shape[0], 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(5 * 36, classes),
    )


def three_classes(in_shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """accelerate keeps its settings in a process-wide singleton."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def recipe(tmp_path: Path):
    """Return a function that writes a recipe and loads it with settings on top."""

    def load(text: str = SMALL, *overrides: str, output: str = "out"):
        (tmp_path / "small.yaml").write_text(text)
        return load_recipe(tmp_path / "small.yaml", [f"output={tmp_path / output}", *overrides])

    return load


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_the_smoke_recipe_learns_the_digits(tmp_path: Path) -> None:
    outcome = run_recipe(
        load_recipe(ROOT / "recipes" / "train_timm_smoke.yaml", [f"output={tmp_path / 'o'}"])
    )
    assert results(outcome.folder)["test"]["best"]["test_accuracy"] > 0.9


def test_a_run_leaves_results_weights_a_table_and_a_picture(recipe) -> None:
    outcome = run_recipe(recipe(SMALL, "epochs=12"))
    found = results(outcome.folder)
    assert [record["step"] for record in found["epochs"]] == [5 * epoch for epoch in range(1, 13)]
    assert found["images"] == {"train": 101, "val": 53, "test": 360}
    assert found["epochs"][-1]["train_loss"] < found["epochs"][0]["train_loss"]
    accuracies = [record["val_accuracy"] for record in found["epochs"]]
    assert found["best_epoch"] == 1 + accuracies.index(max(accuracies))
    assert (outcome.folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    table = outcome.result.tables[0]
    assert [row[0] for row in table.rows] == ["last", "best"]
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert {file.name for file in outcome.result.files} == {
        "curves.png",
        "best.safetensors",
        "last.safetensors",
    }
    assert json.loads((outcome.folder / "timing.json").read_text())["images_per_second"] > 0
    assert not (outcome.folder / "state").exists()


def test_the_weights_score_what_the_results_say(recipe) -> None:
    outcome = run_recipe(recipe(RICH))
    found, data = results(outcome.folder), load_data("digits", n_train=101, n_val=53)
    for name, epoch in (("best", found["best_epoch"]), ("last", 3)):
        file = outcome.folder / f"{name}.safetensors"
        model = build_model("tests.recipe.train.test_train_timm:dropping", data.in_shape, data.classes)
        model.load_state_dict(load_file(file))
        record = found["epochs"][epoch - 1]
        assert evaluate(model, data.val.images, data.val.labels).loss == pytest.approx(
            record["val_loss"], abs=1e-5
        )
        scores = evaluate(model, data.test.images, data.test.labels)
        assert scores.accuracy == pytest.approx(found["test"][name]["test_accuracy"])
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata()["epoch"] == str(epoch)
            assert opened.metadata()["classes"].split("\n") == [str(digit) for digit in range(10)]


@pytest.mark.parametrize(("text", "stops"), [(SMALL, (1, 3, 5, 11)), (RICH, (4, 5, 14))])
def test_a_run_that_is_stopped_anywhere_ends_with_the_same_bits(recipe, text: str, stops) -> None:
    straight = run_recipe(recipe(text, output="straight")).folder

    def stopping_at(stop: int):
        def listen(progress: Progress) -> None:
            if progress.done == stop:
                raise KeyboardInterrupt

        return listen

    for stop in stops:
        AcceleratorState._reset_state(reset_partial_state=True)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe(text, output="stopped"), resume=True, progress=stopping_at(stop))
    AcceleratorState._reset_state(reset_partial_state=True)
    resumed = run_recipe(recipe(text, output="stopped"), resume=True).folder
    assert (resumed / "results.json").read_bytes() == (straight / "results.json").read_bytes()
    for name in ("best.safetensors", "last.safetensors"):
        expected, found = load_file(straight / name), load_file(resumed / name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_complete_run_shows_its_results_again_without_training(recipe) -> None:
    first = run_recipe(recipe())
    heard: list[Progress] = []
    again = run_recipe(recipe(), resume=True, progress=heard.append)
    assert again.was_complete
    assert heard == []
    assert again.result.results == first.result.results


def test_reading_ahead_in_other_processes_changes_no_number(recipe) -> None:
    alone = run_recipe(recipe(RICH, "epochs=1", output="alone")).folder
    ahead = run_recipe(recipe(RICH, "epochs=1", "workers=2", output="ahead")).folder
    assert results(ahead) == results(alone)


def test_accumulated_parts_train_like_the_whole_batch(recipe) -> None:
    whole = results(run_recipe(recipe(SMALL, output="whole")).folder)
    AcceleratorState._reset_state(reset_partial_state=True)
    parts = results(run_recipe(recipe(SMALL, "accumulate=4", output="parts")).folder)
    for a, b in zip(whole["epochs"], parts["epochs"], strict=True):
        assert a == pytest.approx(b, abs=1e-4)


def test_half_precision_trains(recipe) -> None:
    found = results(run_recipe(recipe(SMALL, "precision=bf16", "epochs=8")).folder)
    assert found["epochs"][-1]["train_loss"] < found["epochs"][0]["train_loss"]


def test_pictures_in_a_folder_train_a_timm_model(recipe, tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", ("train", "val"))
    text = f"""
kind: train
data: {{folder: {tmp_path / "pictures"}, side: 32}}
model: {{name: test_resnet}}
epochs: 2
batch_size: 15
device: cpu
"""
    outcome = run_recipe(recipe(text))
    found = results(outcome.folder)
    assert found["classes"] == ["blue", "green", "red"]
    assert found["test"] == {}
    assert outcome.result.tables[0].rows[0][-1] == "-"


def test_a_training_that_diverges_says_so(recipe) -> None:
    outcome = run_recipe(recipe(SMALL, "optimizer={name: sgd, lr: 1e+38}"))
    assert results(outcome.folder)["diverged_at_step"] == 5
    assert any("diverged" in note for note in outcome.result.tables[0].notes)


def test_a_run_is_not_resumed_by_another_recipe(recipe) -> None:
    run_recipe(recipe())
    with pytest.raises(RecipeError, match="epochs was 3, is 4"):
        run_recipe(recipe(SMALL, "epochs=4"), resume=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batch_size=102"], "has 101 training images"),
        (["batch_size=20", "accumulate=3"], "Give a multiple of 3"),
        (["precision=fp16"], "fp16 needs a CUDA device"),
        (
            ["model={name: 'tests.recipe.train.test_train_timm:three_classes'}"],
            r"with \(2, 3\), not with \(2, 10\)",
        ),
        (["model={name: vit_tiny_patch16_224}"], "does not run on the 1x8x8 images of digits"),
        (["data={folder: nowhere}"], "there is no folder nowhere/train"),
    ],
)
def test_what_cannot_be_trained_is_an_error_for_people(recipe, overrides: list[str], message: str) -> None:
    with pytest.raises(NfoptError, match=message):
        run_recipe(recipe(SMALL, *overrides))


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("data={foldr: x}", "a `folder` of pictures"),
        ("data={folder: x, sides: 3}", "Did you mean 'side'"),
        ("augment={flop: true}", "Did you mean 'flip'"),
        ("optimizer.tune={lr: [0.5, 1.0]}", "kind: compare"),
        ("precision=fp8", "fp16"),
        ("epoch=3", "Did you mean 'epochs'"),
    ],
)
def test_every_kind_of_fault_is_found(recipe, tmp_path: Path, override: str, part: str) -> None:
    recipe()
    faults = recipe_faults(tmp_path / "small.yaml", [override])
    assert any(part in str(fault) for fault in faults)


def test_a_job_for_one_process_is_refused_to_many(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    loaded = load_recipe(ROOT / "recipes" / "quickstart.yaml", [f"output={tmp_path / 'out'}"])
    with pytest.raises(RecipeError, match="run by one process, but 2 were started"):
        run_recipe(loaded)
    assert not (tmp_path / "out").exists()


def launched(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launch, "-m", "nfopt", "run", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_two_processes_write_once_and_train_like_one(recipe, tmp_path: Path) -> None:
    alone = results(run_recipe(recipe(output="alone")).folder)
    done = launched(tmp_path, "small.yaml", "output=two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("in two/") == 1
    together = results(tmp_path / "two")
    for a, b in zip(alone["epochs"], together["epochs"], strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    assert together["best_epoch"] == alone["best_epoch"]
    assert torch.allclose(
        load_file(tmp_path / "two" / "last.safetensors")["1.weight"],
        load_file(tmp_path / "alone" / "last.safetensors")["1.weight"],
        atol=1e-4,
    )


@pytest.mark.slow
def test_an_error_in_the_first_process_ends_all_with_its_message(recipe, tmp_path: Path) -> None:
    recipe()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    done = launched(tmp_path, "small.yaml", "output=taken")
    assert done.returncode != 0
    assert "exists already" in done.stderr
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_a_process_that_is_killed_again_and_again_ends_with_the_same_numbers(recipe, tmp_path: Path) -> None:
    expected = results(run_recipe(recipe(RICH, output="straight")).folder)
    command = [sys.executable, "-m", "nfopt", "run", "small.yaml", "output=killed", "--resume"]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    for lines in (1, 2, 4):
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, stderr=subprocess.PIPE)
        assert process.stderr is not None
        for _ in range(lines):
            process.stderr.readline()
        process.kill()
        process.communicate()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "killed") == expected
