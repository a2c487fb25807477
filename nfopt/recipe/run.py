"""Running a recipe: text to record, record to plan or to results in an output folder."""

import hashlib
import platform
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError

import nfopt
from nfopt.atomic import write_json, write_text
from nfopt.errors import RecipeError, unknown_name
from nfopt.progress import ProgressCallback, silent
from nfopt.recipe.folder import OutputFolder, folder_to_resume, new_folder
from nfopt.recipe.inputs import device_of
from nfopt.recipe.job import JOBS, Job, JobResult, Recipe, RunContext, Table
from nfopt.recipe.processes import from_first, is_first, join, process_count
from nfopt.recipe.source import Document, Fault, read_document
from nfopt.recipe.strict import faults_of


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe without faults, with the job that it asks for and the name of its file."""

    recipe: Recipe
    job: Job[Any]
    name: str

    def resolved_yaml(self) -> str:
        """Return the recipe with all defaults filled in, as YAML that `load_recipe` reads back."""
        return yaml.safe_dump(_values(self.recipe), sort_keys=False, allow_unicode=True)

    def plan(self) -> list[str]:
        """Return what a run would do, a line each; nothing is written."""
        return list(self.job.plan(self.recipe))


@dataclass(frozen=True)
class Outcome:
    """Where a run's results lie, what they are, and whether they were there already."""

    folder: Path
    result: JobResult
    was_complete: bool = False


def recipe_faults(file: Path, overrides: Sequence[str] = ()) -> list[Fault]:
    """Return every fault of a recipe, in the order of the file; an empty list means that it can run."""
    return sorted(_check(read_document(file, overrides), file)[0], key=_line)


def _line(fault: Fault) -> tuple[str, int]:
    file, _, line = fault.place.rpartition(":")
    return (file, int(line)) if line.isdecimal() else (fault.place, 0)


def load_recipe(file: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read, merge, override and check a recipe.

    Args:
        file: a YAML file with a `kind`.
        overrides: settings `a.b=value` on top, the value in YAML.

    Raises:
        RecipeError: the recipe has faults; the message lists all of them with file and line.
    """
    faults, loaded = _check(read_document(file, overrides), file)
    if loaded is None:
        faults = sorted(faults, key=_line)
        count = f"{len(faults)} faults" if len(faults) > 1 else "a fault"
        raise RecipeError("\n".join([f"{file} has {count}:", *(f"  {fault}" for fault in faults)]))
    return loaded


def _check(document: Document, file: Path) -> tuple[list[Fault], LoadedRecipe | None]:
    faults = list(document.faults)
    kind = document.values.get("kind")
    if not document.values and faults:
        return faults, None
    known = ", ".join(JOBS)
    if not isinstance(kind, str):
        faults.append(Fault(document.place_of(("kind",)), "kind", f"must name a job: one of {known}."))
    elif kind not in JOBS:
        faults.append(Fault(document.place_of(("kind",)), "kind", str(unknown_name("job", kind, JOBS))))
    if not isinstance(kind, str) or kind not in JOBS:
        return faults, None
    job = JOBS[kind]
    try:
        recipe = job.recipe.model_validate(document.values)
    except ValidationError as error:
        return [*faults, *faults_of(error, document)], None
    return faults, None if faults else LoadedRecipe(recipe, job, file.stem)


def run_recipe(loaded: LoadedRecipe, *, resume: bool = False, progress: ProgressCallback = silent) -> Outcome:
    """Run a recipe in its output folder.

    Args:
        loaded: the recipe.
        resume: continue the run that is in the folder, or begin one if there is none.
        progress: hears how far the work is.

    Returns:
        The folder and the results. A complete run that is resumed returns its results without work.

    Raises:
        RecipeError: the folder is taken, or holds a run of another recipe, or several processes were started
            for a job of one.
    """
    recipe = loaded.recipe
    if process_count() > 1 and not recipe.many_processes:
        raise RecipeError(
            f"kind: {recipe.kind} is run by one process, but {process_count()} were started. Run it without "
            "torchrun or accelerate launch."
        )
    join(device_of(getattr(recipe, "device", "auto")))
    folder, was_complete = from_first(lambda: _opened(loaded, resume))
    result = loaded.job.run(recipe, RunContext(folder, progress))
    if is_first():
        if result.timing:
            write_json(folder.path / "timing.json", dict(result.timing))
        write_text(folder.path / "tables.md", "\n\n".join(markdown(table) for table in result.tables) + "\n")
        folder.finish(result.results)
    return Outcome(folder.path, result, was_complete)


def _opened(loaded: LoadedRecipe, resume: bool) -> tuple[OutputFolder, bool]:
    """Return the folder of a run, made or found again, and whether the run in it was complete."""
    recipe = loaded.recipe
    folder = folder_to_resume(recipe.output, loaded.name) if resume else None
    # A run that is done in parts is never known to be complete: the next part may add to it.
    in_parts = recipe.not_the_experiment > Recipe.not_the_experiment
    was_complete = folder is not None and folder.complete and not in_parts
    if folder is None:
        folder = new_folder(recipe.output, loaded.name)
        folder.write_resolved(_values(recipe) | {"output": str(folder.path), "provenance": provenance()})
    else:
        _refuse_another_recipe(loaded, folder)
        if not was_complete:
            differing = folder.note_resumed(provenance())
            if differing:
                warnings.warn(
                    f"the run in {folder.path} was begun with other {' and '.join(differing)}: what is "
                    "computed from here on may differ from what an unbroken run would give.",
                    stacklevel=4,
                )
    return folder, was_complete


def _refuse_another_recipe(loaded: LoadedRecipe, folder: OutputFolder) -> None:
    """Raise when the run in `folder` was begun by a recipe that differs in what its results depend on.

    What may differ is brought up to date in resolved.yaml.
    """
    begun, now = folder.resolved(), _values(loaded.recipe)
    differing = [
        key
        for key in sorted(begun.keys() | now.keys())
        if key not in loaded.recipe.not_the_experiment and begun.get(key) != now.get(key)
    ]
    if differing:
        shown = "; ".join(f"{key} was {begun.get(key)!r}, is {now.get(key)!r}" for key in differing)
        raise RecipeError(
            f"the run in {folder.path} was begun by another recipe: {shown}. Undo the change to resume it, "
            "or start afresh with output=..."
        )
    kept = {key: begun[key] for key in ("output", "provenance") if key in begun}
    if begun != now | kept:
        folder.write_resolved(now | kept)


def _values(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json")


def provenance() -> dict[str, Any]:
    """Return the versions that a result depends on, with a hash of nfopt's own code."""
    package = Path(nfopt.__file__).parent
    code = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        code.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    try:
        versions["nfopt"] = version("nfopt")
    except PackageNotFoundError:
        versions["nfopt"] = "not installed"
    return {"versions": versions, "code": code.hexdigest(), "threads": torch.get_num_threads(), "data": {}}


def markdown(table: Table) -> str:
    """Return a table as Markdown, its notes as a list below."""
    heads = [column.replace("\n", " ") for column in table.columns]
    lines = [f"## {table.title}", "", "| " + " | ".join(heads) + " |"]
    lines.append("|" + " --- |" * len(heads))
    lines.extend("| " + " | ".join(row) + " |" for row in table.rows)
    return "\n".join([*lines, "", *(f"- {note}" for note in table.notes)]).rstrip()
