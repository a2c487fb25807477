import re
import shlex
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for name, text in fenced if name == language]


def test_the_swap_in_example_is_one_change_in_a_script_of_a_few_lines():
    example = blocks("python")[0]
    assert example.count("# was:") == 1
    assert len([line for line in example.splitlines() if line.strip()]) <= 10


def test_the_swap_in_example_runs_and_learns():
    example = blocks("python")[0]
    torch.manual_seed(0)
    names: dict[str, torch.Tensor] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["loss"] < 0.3 * names["inputs"].prod(1).var()


def test_the_pruning_example_keeps_a_tenth_and_removes_half_of_the_neurons():
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(compile(blocks("python")[1], "README.md", "exec"), names)
    assert abs(names["mask"].density - 0.1) < 1e-3
    assert names["smaller"].model[0].out_features == 32
    for inputs, targets in names["batches"]:
        torch.nn.functional.cross_entropy(names["model"](inputs), targets).backward()
        names["optimizer"].step()
    kept = sum(int(p.count_nonzero()) for p in names["model"].parameters() if p.dim() > 1)
    assert kept == round(0.1 * (20 * 64 + 64 * 5))


def test_the_editing_example_is_accepted_and_taken_back():
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(compile(blocks("python")[2], "README.md", "exec"), names)
    edit, model = names["edit"], names["model"]
    assert edit.accepted
    assert abs(float(model[1].running_mean.mean())) < 0.2
    edit.apply(model)
    assert float(model[1].running_var.mean()) > 1.5


def test_the_two_commands_of_the_newcomer_are_there():
    assert "pip install . && nfopt run recipes/quickstart.yaml" in README
    assert "pip install '.[test]' && pytest" in README


def test_every_recipe_and_link_that_is_named_exists():
    names = set(re.findall(r"recipes/\w+\.yaml", README)) | {
        link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link
    }
    assert names
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_the_architecture_section_names_every_module_and_package():
    section = README.partition("## Architecture")[2].partition("## Tests")[0]
    modules = {
        path.name + ("/" if path.is_dir() else "")
        for path in (ROOT / "nfopt").iterdir()
        if not path.name.startswith("_") and (path.suffix == ".py" or (path / "__init__.py").is_file())
    }
    assert {name for name in modules if not re.search(rf"(^|\s){re.escape(name)}(\s|$)", section)} == set()


def test_every_option_of_the_command_line_that_is_named_exists():
    from typer.testing import CliRunner

    from nfopt.cli import app

    (usage,) = [block for block in blocks("") if block.startswith("nfopt run RECIPE")]
    for line in usage.splitlines():
        command = shlex.split(line.replace("'", ""))[1]
        help_text = (
            CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).stdout
        )
        for option in re.findall(r"--[a-z-]+", line):
            assert option in help_text, (command, option)
