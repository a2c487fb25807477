"""The text of a recipe: strict YAML with includes and overrides; every value knows its file and line."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from yaml.composer import ComposerError

KeyPath: TypeAlias = tuple[str | int, ...]
COMMAND_LINE = "command line"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a recipe: where, under which key, and what."""

    place: str
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.path + ': ' if self.path else ''}{self.message}"


@dataclass
class Document:
    """The values of a recipe before any schema.

    Attributes:
        values: what the files and overrides say.
        places: "file:line" of every value.
        faults: what is wrong so far.
        added: for each key that an override added to a mapping, the keys that were there.
    """

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    added: dict[KeyPath, tuple[str, ...]] = field(default_factory=dict)

    def place_of(self, path: KeyPath) -> str:
        """Return "file:line" of the value at `path`, or of the nearest mapping around it."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return COMMAND_LINE


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader without aliases (include does their work) and with 1e-3 as the number that it is."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise ComposerError(
                None, None, "aliases (*name) are not supported; repeat the value, or use include", mark
            )
        return super().compose_node(parent, index)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def dotted(path: KeyPath) -> str:
    """Return a key path as people write it: a.b.0.c."""
    return ".".join(str(part) for part in path)


def read_document(file: Path, overrides: Sequence[str] = ()) -> Document:
    """Read a recipe with everything that it includes, and set the overrides `a.b=value` on top.

    A mapping is merged key by key, anything else is replaced: later includes win over earlier ones, the
    including file over its includes, overrides over all. Faults are collected in the document.
    """
    document = _read_file(file, ())
    for override in overrides:
        _override(document, override)
    return document


def _read_file(file: Path, includers: tuple[Path, ...]) -> Document:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror
        return Document(faults=[Fault(str(file), "", f"cannot be read: {reason}.")])
    except UnicodeDecodeError:
        return Document(faults=[Fault(str(file), "", "is not UTF-8 text, so it is no recipe.")])
    own = parse(text, str(file))
    included = own.values.pop("include", [])
    place = own.places.get(("include",), str(file))
    names = [included] if isinstance(included, str) else included
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        own.faults.append(Fault(place, "include", f"is a file or a list of files, not {included!r}."))
        return own
    merged = Document()
    chain = (*includers, file.resolve())
    for name in names:
        other = file.parent / name
        if other.resolve() in chain:
            cycle = " -> ".join(path.name for path in (*chain, other.resolve()))
            own.faults.append(Fault(place, "include", f"goes round in a circle: {cycle}."))
            continue
        if not other.is_file():
            own.faults.append(Fault(place, "include", f"there is no file {str(other)!r}."))
            continue
        _merge(merged, _read_file(other, chain))
    _merge(merged, own)
    return merged


def parse(text: str, name: str) -> Document:
    """Parse YAML text whose top is a mapping; `name` stands for the file in the places."""
    document = Document(places={(): name})
    try:
        loader = _StrictLoader(text)
        node = loader.get_single_node()
        if isinstance(node, yaml.MappingNode):
            value = _construct(loader, node, (), name, document)
            document.values = value if isinstance(value, dict) else {}
        else:
            document.faults.append(Fault(name, "", "a recipe is a mapping of keys to values; this is none."))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        document.faults.append(Fault(place, "", f"is not valid YAML: {error.problem or error.context}."))
    except (yaml.YAMLError, ValueError) as error:
        document.faults.append(Fault(name, "", f"is not valid YAML: {error}."))
    except RecursionError:
        document.faults.append(Fault(name, "", "is nested too deeply to be a recipe."))
    return document


def _construct(loader: _StrictLoader, node: yaml.Node, path: KeyPath, name: str, document: Document) -> Any:
    """Build the value of `node`, noting the place of each part and every duplicate or unreadable key."""
    place = f"{name}:{node.start_mark.line + 1}"
    document.places[path] = name if path == () else place
    if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = loader.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if not isinstance(key, str) or key_node.tag != "tag:yaml.org,2002:str":
                document.faults.append(
                    Fault(f"{name}:{line}", dotted(path), f"a key must be text; quote {key_node.value!r}.")
                )
                continue
            if key in mapping:
                document.faults.append(
                    Fault(f"{name}:{line}", dotted((*path, key)), "is given twice; keep one of them.")
                )
                continue
            mapping[key] = _construct(loader, value_node, (*path, key), name, document)
            document.places[(*path, key)] = f"{name}:{line}"
        return mapping
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        return [
            _construct(loader, item, (*path, index), name, document) for index, item in enumerate(node.value)
        ]
    return loader.construct_object(node, deep=True)  # type: ignore[no-untyped-call]


def _merge(base: Document, over: Document) -> None:
    """Lay `over` on `base` in place, forgetting the places of what it replaces."""
    base.faults.extend(over.faults)
    _lay(base, over.values, (), over.places)
    if () in over.places:
        base.places[()] = over.places[()]


def _lay(base: Document, values: Mapping[str, Any], at: KeyPath, places: Mapping[KeyPath, str]) -> None:
    target: Any = base.values
    for part in at:
        target = target[part]
    for key, value in values.items():
        path = (*at, key)
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            base.places[path] = places.get(path, base.places.get(path, COMMAND_LINE))
            _lay(base, value, path, places)
            continue
        _forget(base, path)
        target[key] = value
        base.places.update({p: place for p, place in places.items() if p[: len(path)] == path})


def _forget(document: Document, path: KeyPath) -> None:
    for known in [p for p in document.places if p[: len(path)] == path]:
        del document.places[known]


def _override(document: Document, override: str) -> None:
    """Set one `a.b=value` from the command line; the value is YAML."""
    name, equals, text = override.partition("=")
    path: KeyPath = tuple(name.strip().split("."))
    if not equals or "" in path:
        document.faults.append(
            Fault(COMMAND_LINE, "", f"{override!r} is no override; write it as key=value or a.b.c=value.")
        )
        return
    parsed = parse(f"value: {text}", COMMAND_LINE)
    if parsed.faults:
        document.faults.append(Fault(COMMAND_LINE, name, parsed.faults[0].message))
        return
    target: Any = document.values
    at: KeyPath = ()
    for depth, part in enumerate(path, start=1):
        key = _key_in(target, part)
        if key is None:
            count = f"; count from 0 to {len(target) - 1}" if isinstance(target, list) else " to set"
            message = f"{dotted(at)} is {target!r}, which has no key {part!r}{count}."
            document.faults.append(Fault(COMMAND_LINE, name, message))
            return
        at = (*at, key)
        if isinstance(target, dict) and key not in target:
            document.added[at] = tuple(target)
        if depth == len(path):
            _forget(document, at)
            document.places[at] = COMMAND_LINE
            target[key] = parsed.values["value"]
        elif isinstance(target, dict) and key not in target:
            document.places[at] = COMMAND_LINE
            target[key] = {}
            target = target[key]
        else:
            target = target[key]


def _key_in(container: Any, part: str) -> str | int | None:
    """Return `part` as a key of a mapping or an index of a list; None when it cannot be one."""
    if isinstance(container, dict):
        return part
    if isinstance(container, list) and part.isdecimal() and int(part) < len(container):
        return int(part)
    return None
