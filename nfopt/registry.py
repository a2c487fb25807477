"""Registries of plug-ins: a name, entered once by a decorator, stands for one typed function or class."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from nfopt.errors import DuplicateNameError, unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """Plug-ins of one kind by name.

    Args:
        kind: what the plug-ins are, as it appears in error messages ("data set", "direction").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that enters its argument under `name`.

        Raises:
            DuplicateNameError: the name is taken.
        """

        def enter(entry: T) -> T:
            if name in self._entries:
                raise DuplicateNameError(f"a {self.kind} named {name!r} is registered already.")
            self._entries[name] = entry
            return entry

        return enter

    def __getitem__(self, name: str) -> T:
        """Return the plug-in called `name`; raises UnknownNameError with the nearest names."""
        if name not in self._entries:
            raise unknown_name(self.kind, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)
