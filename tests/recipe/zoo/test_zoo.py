import pytest
import torch

from nfopt.data import Split
from nfopt.recipe import load_recipe, recipe_faults, run_recipe
from nfopt.recipe.inputs import DataOptions
from nfopt.recipe.zoo.families import in_grey, loaded
from nfopt.zoo import load_zoo

INRS = """
kind: zoo
nets:
  family: inr_images
  data: {name: digits, n_train: 101, n_val: 53}
  hidden: [7, 5]
  learning_rate: 2e-3
  max_steps: 60
  stop_psnr_db: 16.0
  views: 2
counts: {train: 5, val: 3, test: 2}
chunk: 7
device: cpu
workers: 1
"""
SINES = """
kind: zoo
nets: {family: inr_sines, hidden: [7, 5], max_steps: 11, points: 31, amplitude: [0.5, 2.0]}
counts: {train: 3, test: 2}
device: cpu
"""
CLASSIFIERS = """
kind: zoo
nets:
  family: classifiers
  data: {name: digits, n_train: 101, n_val: 53}
  model: {name: small-cnn, options: {channels: [3, 5]}}
  steps: [5, 11]
  checkpoints: [0.2, 1.0]
  batch_images: 13
  test_images: 31
counts: {train: 4, val: 2}
chunk: 4
device: cpu
"""
BINARY = """
kind: zoo
nets:
  family: binary_classifiers
  data: {name: digits, n_train: 101, n_val: 53}
  model: {name: mlp, options: {hidden: [7]}}
  steps: 11
  batch_images: 13
counts: {train: 4, val: 2}
device: cpu
"""


def recipe(folder, text, *overrides, output="out"):
    (folder / "small.yaml").write_text(text)
    return load_recipe(folder / "small.yaml", [f"output={folder / output}", *overrides])


@pytest.mark.parametrize(
    ("text", "sides", "fact"),
    [
        (INRS, [10, 6, 4], "image_number"),
        (SINES, [3, 0, 2], "frequency"),
        (CLASSIFIERS, [8, 4, 0], "learning_rate"),
        (BINARY, [4, 2, 0], "classes"),
    ],
)
def test_every_family_is_made_told_and_drawn(tmp_path, text, sides, fact):
    outcome = run_recipe(recipe(tmp_path, text))
    zoo = load_zoo(outcome.folder / "zoo.safetensors")
    assert zoo.side.bincount(minlength=3).tolist() == sides
    assert fact in zoo.facts
    results = outcome.result.results
    assert results["digest"] == zoo.digest
    assert zoo.card["recipe"]["nets"]["family"] == zoo.card["family"]
    assert zoo.card["provenance"]["versions"]["torch"] == str(torch.__version__)
    table = outcome.result.tables[0]
    assert [int(row[1]) for row in table.rows] == [count for count in sides if count]
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert (outcome.folder / "zoo.png").read_bytes().startswith(b"\x89PNG")
    assert not (outcome.folder / "state").exists()


def test_the_zoo_does_not_depend_on_the_chunks(tmp_path):
    digests = {
        run_recipe(recipe(tmp_path, INRS, f"chunk={chunk}", output=f"{chunk}")).result.results["digest"]
        for chunk in (3, 20)
    }
    assert len(digests) == 1


class StopError(Exception):
    pass


@pytest.mark.parametrize("text", [INRS, CLASSIFIERS])
def test_a_stopped_run_goes_on_after_its_last_whole_chunk_to_the_same_zoo(tmp_path, text):
    unbroken = run_recipe(recipe(tmp_path, text, output="whole")).result.results

    def stop_in_the_second_chunk(progress):
        heard.append(progress.done)
        if progress.done > chunk:
            raise StopError

    loaded_recipe = recipe(tmp_path, text)
    chunk, heard = loaded_recipe.recipe.chunk, []
    with pytest.raises(StopError):
        run_recipe(loaded_recipe, progress=stop_in_the_second_chunk)
    assert not (tmp_path / "out" / "zoo.safetensors").exists()
    assert len(list((tmp_path / "out" / "state").iterdir())) == 1
    heard = []
    resumed = run_recipe(loaded_recipe, resume=True, progress=lambda p: heard.append(p.done))
    assert resumed.result.results == unbroken
    assert min(heard) == chunk, "the first chunk is not made again"


def test_a_complete_run_is_not_made_again(tmp_path):
    first = run_recipe(recipe(tmp_path, SINES))
    heard = []
    again = run_recipe(recipe(tmp_path, SINES), resume=True, progress=heard.append)
    assert again.was_complete and not heard
    assert again.result.results == first.result.results
    assert again.result.tables == first.result.tables


@pytest.mark.parametrize(
    ("text", "override", "part"),
    [
        (INRS, "nets.family=inr_image", "inr_images"),
        (INRS, "nets.hiden=[3]", "Did you mean 'hidden'"),
        (INRS, "nets.hidden=[]", "at least 1"),
        (INRS, "nets.data.name=digit", "Did you mean 'digits'"),
        (INRS, "counts={train: 0}", "at least one net"),
        (INRS, "chunk=0", "greater than or equal to 1"),
        (SINES, "nets.frequency=[3, 1]", r"[least, largest]"),
        (SINES, "nets.points=1", "greater than or equal to 2"),
        (CLASSIFIERS, "nets.steps=[9, 3]", "[least, largest]"),
        (CLASSIFIERS, "nets.train_share=[0.5, 1.5]", "at most 1"),
        (CLASSIFIERS, "nets.checkpoints=[1.0, 0.5]", "ascend"),
        (CLASSIFIERS, "nets.model.name=small_cnn", "Did you mean 'small-cnn'"),
        (BINARY, "nets.checkpoints=[1.0]", "unknown key"),
    ],
)
def test_every_kind_of_fault_is_found(tmp_path, text, override, part):
    (tmp_path / "small.yaml").write_text(text)
    faults = recipe_faults(tmp_path / "small.yaml", [override])
    assert len(faults) == 1
    assert part in str(faults[0])


def test_plans_say_what_would_be_made(tmp_path):
    assert "make 20 in 3 chunks" in "\n".join(recipe(tmp_path, INRS).plan())
    assert "1-7-5-1" in "\n".join(recipe(tmp_path, SINES).plan())
    assert "2 checkpoints of each run" in "\n".join(recipe(tmp_path, CLASSIFIERS).plan())
    assert "two classes of digits" in "\n".join(recipe(tmp_path, BINARY).plan())


def test_colours_become_grey_by_their_brightness():
    images = torch.rand(7, 3, 5, 11, generator=torch.Generator().manual_seed(0))
    grey = in_grey(Split(images, torch.arange(7)))
    red, green, blue = images.unbind(1)
    torch.testing.assert_close(grey.images, (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1))
    assert torch.equal(grey.labels, torch.arange(7))


def test_what_is_grey_already_stays_as_it_is():
    options = DataOptions(name="digits", standardize=False)
    assert torch.equal(loaded(options, True).train.images, options.load().train.images)
