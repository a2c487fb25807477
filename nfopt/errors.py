"""Errors for people: each says what is wrong, where, what was given, and the way out."""

import difflib
from collections.abc import Iterable


class NfoptError(Exception):
    """Base class of every error that nfopt raises on bad input."""


class UnknownNameError(NfoptError):
    """A name that is not among the known ones; the message lists them and the nearest."""


class DuplicateNameError(NfoptError):
    """A plug-in was registered under a name that is taken."""


class PermutationSpecError(NfoptError):
    """A permutation spec is inconsistent, or does not fit the tensors that it was given."""


class TraceError(NfoptError):
    """A module could not be traced with the given example inputs."""


class OptimizerError(NfoptError):
    """The optimizer was given parameters, options or state that it cannot work with."""


class CheckpointError(NfoptError):
    """A checkpoint file is damaged, of another version, or made for something else."""


class DataError(NfoptError):
    """A data set is unknown, absent, or not of the expected form."""


class RecipeError(NfoptError):
    """A recipe has faults; the message lists all of them."""


class PruningError(NfoptError):
    """A pruning mask or plan cannot be made, or does not fit the model that it was given."""


class EditingError(NfoptError):
    """An edit cannot be made, does not fit the model that it was given, or was refused by its gate."""


class NfoptWarning(UserWarning):
    """Something that nfopt does differently from what its user may expect, said once."""


def unknown_name(kind: str, name: str, known: Iterable[str], *, where: str = "") -> UnknownNameError:
    """Build the error for an unknown `name` of a `kind`: the nearest known names, then all of them."""
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(repr(n) for n in nearest)}?" if nearest else ""
    place = f" in {where}" if where else ""
    shown = ", ".join(names[:40]) + (f", ... ({len(names)} in all)" if len(names) > 40 else "")
    return UnknownNameError(f"unknown {kind} {name!r}{place}.{hint} Known: {shown}.")
