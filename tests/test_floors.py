import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def lint(folder):
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache", "--config", "pyproject.toml"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def contracts():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


@pytest.fixture(scope="module")
def copied_package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "nfopt", folder / "nfopt", ignore=shutil.ignore_patterns("_data", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_the_package_keeps_its_floors():
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("errors.py", "import nfopt.data"),
        ("data.py", "import nfopt.models"),
        ("symmetry/axes.py", "from nfopt.optim import NFOptimizer"),
        ("optim/guard.py", "import nfopt.meta.task"),
        ("recipe/job.py", "import nfopt.cli"),
        ("progress.py", "import rich"),
        ("recipe/run.py", "import typer"),
    ],
)
def test_an_import_that_goes_up_or_sideways_is_caught(copied_package, file, line):
    place = copied_package / "nfopt" / file
    text = place.read_text()
    place.write_text(f"{text}\n{line}\n")
    try:
        result = lint(copied_package)
    finally:
        place.write_text(text)
    assert result.returncode != 0
    assert "BROKEN" in result.stdout


def test_every_module_stands_on_a_floor_and_all_but_the_command_line_are_kept_from_rich():
    modules = {
        f"nfopt.{path.stem}"
        for path in (ROOT / "nfopt").iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").is_file()) and not path.stem.startswith("_")
    }
    floors, no_rich = contracts()
    named = {name.strip() for layer in floors["layers"] for name in re.split("[:|]", layer)}
    assert named == modules
    assert set(no_rich["source_modules"]) == modules - {"nfopt.cli"}
