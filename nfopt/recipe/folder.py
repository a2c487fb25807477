"""The output folder of a run: who may write there, what is finished in it, and where the data came from.

runs/quickstart/
    resolved.yaml    the recipe with all defaults filled in, and its provenance; itself a recipe
    results.json     appears last, when everything is done
    timing.json      what depends on the machine's mood
    tables.md, *.png
    pieces/*.json    finished parts, reused by --resume
    state/*          unfinished parts; gone when the run is complete
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import JsonValue

from nfopt.atomic import is_partial, write_json, write_text
from nfopt.errors import RecipeError

RESOLVED = "resolved.yaml"
RESULTS = "results.json"


@dataclass(frozen=True)
class OutputFolder:
    """A folder that holds one run. It is made, or found again, by `new_folder` and `folder_to_resume`."""

    path: Path

    @property
    def complete(self) -> bool:
        """Whether the run in this folder has ended well."""
        return (self.path / RESULTS).is_file()

    def resolved(self) -> dict[str, Any]:
        """Return the values of resolved.yaml.

        Raises:
            RecipeError: the file is absent or damaged, so this is no folder of a run.
        """
        file = self.path / RESOLVED
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise RecipeError(
                f"{file} cannot be read, so {self.path} holds no run of nfopt: {error}. "
                "Give another folder with output=..."
            ) from error
        if not isinstance(values, dict):
            raise RecipeError(f"{file} holds no recipe. Give another folder with output=...")
        return values

    def write_resolved(self, values: Mapping[str, Any]) -> None:
        """Write resolved.yaml."""
        write_text(self.path / RESOLVED, yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))

    def piece(self, name: str, compute: Callable[[], JsonValue]) -> Any:
        """Return the kept result of a piece, computing and keeping it if need be."""
        if not self._piece_file(name).is_file():
            write_json(self._piece_file(name), compute())
        return self.kept(name)

    def kept(self, name: str) -> Any:
        """Return the kept result of a piece; None if it is not there."""
        file = self._piece_file(name)
        if not file.is_file():
            return None
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RecipeError(f"{file} is damaged: {error}. Delete it, and it is computed again.") from error

    def _piece_file(self, name: str) -> Path:
        return self.path / "pieces" / f"{_file_name(name)}.json"

    def state_file(self, name: str) -> Path:
        """Return the path for the state of an unfinished piece."""
        folder = self.path / "state"
        folder.mkdir(exist_ok=True)
        return folder / _file_name(name)

    def note_data(self, name: str, content_hash: str) -> None:
        """Put a hash into resolved.yaml; raises RecipeError when another one stands there."""
        values = self.resolved()
        provenance = values.setdefault("provenance", {})
        known = provenance.setdefault("data", {})
        if known.get(name, content_hash) != content_hash:
            raise RecipeError(
                f"{name!r} is not the one that the run in {self.path} began with (content hash "
                f"{content_hash[:12]}, was {known[name][:12]}). Start afresh with output=..."
            )
        if name not in known:
            known[name] = content_hash
            self.write_resolved(values)

    def note_resumed(self, now: Mapping[str, Any]) -> list[str]:
        """Add to resolved.yaml which versions are not those that the run began with; return their names."""
        values = self.resolved()
        known = values.setdefault("provenance", {})
        differing = {key: value for key, value in now.items() if key != "data" and known.get(key) != value}
        resumed = known.setdefault("resumed_with", [])
        if differing and differing not in resumed:
            resumed.append(differing)
            self.write_resolved(values)
        return list(differing)

    def finish(self, results: Mapping[str, JsonValue]) -> None:
        """Write results.json, which marks the run as complete, and drop the state of its parts."""
        write_json(self.path / RESULTS, dict(results))
        shutil.rmtree(self.path / "state", ignore_errors=True)
        for leftover in [path for path in self.path.rglob(".*") if is_partial(path)]:
            leftover.unlink(missing_ok=True)


def _file_name(name: str) -> str:
    safe = "".join(c if c.isalnum() or c in "-_.=" else "-" for c in name)
    if safe != name or safe.startswith("."):
        raise ValueError(f"a piece is named with letters, digits and -_.= only, not {name!r}")
    return safe


def new_folder(wanted: Path | None, recipe_name: str) -> OutputFolder:
    """Make the folder of a new run: `wanted`, or else runs/<recipe_name>, numbered if that is taken.

    Raises:
        RecipeError: `wanted` exists already and is not empty, or cannot be made.
    """
    try:
        if wanted is not None:
            if wanted.exists() and not (wanted.is_dir() and all(is_partial(p) for p in wanted.iterdir())):
                raise RecipeError(
                    f"the output folder {wanted} exists already. Continue that run with --resume, or give "
                    "another folder with output=..."
                )
            wanted.mkdir(parents=True, exist_ok=True)
            return OutputFolder(wanted)
        Path("runs").mkdir(exist_ok=True)
        for path in _numbered(recipe_name):
            if not path.exists():
                path.mkdir()
                return OutputFolder(path)
    except OSError as error:
        raise RecipeError(
            f"the output folder cannot be made: {error}. Give another one with output=..."
        ) from error
    raise AssertionError("the numbers never end")


def folder_to_resume(wanted: Path | None, recipe_name: str) -> OutputFolder | None:
    """Return the folder to continue: `wanted`, or the newest of runs/<recipe_name>; None if there is none."""
    if wanted is not None:
        return OutputFolder(wanted) if (wanted / RESOLVED).is_file() else None
    newest = None
    for path in _numbered(recipe_name):
        if not path.exists():
            return newest
        if (path / RESOLVED).is_file():
            newest = OutputFolder(path)
    return newest


def _numbered(recipe_name: str) -> Iterator[Path]:
    yield Path("runs") / recipe_name
    number = 2
    while True:
        yield Path("runs") / f"{recipe_name}-{number}"
        number += 1
