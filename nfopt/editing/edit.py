"""Edit: what separates two states of one model, as a value; applied and taken back bit for bit."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from nfopt.editing import edit_file
from nfopt.editing.bits import (
    Mark,
    check_readable,
    difference,
    differences,
    flipped,
    mark_of,
    shortened,
    total_digest,
)
from nfopt.editing.history import EditStep
from nfopt.editing.model_state import marks_of, state_of, write_into
from nfopt.errors import EditingError
from nfopt.symmetry import unwrap


@dataclass(frozen=True, eq=False)
class Edit:
    """The bits of a model's state that an edit turns over: applied twice, an exclusive or is undone.

    The state is all parameters and saved buffers, statistics of BatchNorm included. An edit belongs to
    the one state that it was made for, its base, and to no other.

    Attributes:
        bits: for each changed tensor the exclusive or of its bytes before and after.
        base: the mark of every tensor of the base.
        result: the mark of every tensor of the edited state.
        history: how it was made; several steps where edits were composed.
        model: name of the model's class, for people.
    """

    bits: Mapping[str, UInt8[Tensor, " bytes"]]
    base: Mapping[str, Mark]
    result: Mapping[str, Mark]
    history: tuple[EditStep, ...] = ()
    model: str = "model"

    def __post_init__(self) -> None:
        for name in ("bits", "base", "result"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        strangers = [name for name in self.bits if name not in self.base]
        if strangers or self.base.keys() != self.result.keys():
            raise EditingError(
                f"an edit is about the tensors of its base; it has others: {shortened(strangers)}."
            )
        in_order = {name: self.bits[name] for name in self.base if name in self.bits}
        object.__setattr__(self, "bits", MappingProxyType(in_order))

    @classmethod
    def between(
        cls,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        history: Iterable[EditStep] = (),
        model: str = "model",
    ) -> "Edit":
        """Return the edit that leads from one state to another of the same names, types and shapes.

        Raises:
            EditingError: the two are not states of one model.
        """
        check_readable(before)
        check_readable(after)
        base = {name: mark_of(tensor) for name, tensor in before.items()}
        result = {name: mark_of(tensor) for name, tensor in after.items()}
        faults = [line for line in differences(base, result) if not line.endswith("has other values")]
        if faults:
            raise EditingError(f"these are not two states of one model: {shortened(faults)}.")
        bits = {
            name: difference(tensor, after[name])
            for name, tensor in before.items()
            if base[name] != result[name]
        }
        return cls(bits, base, result, tuple(history), model)

    @property
    def method(self) -> str:
        """The methods of the history, in order."""
        return " + ".join(step.method for step in self.history) or "none"

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the changed tensors."""
        return tuple(self.bits)

    @cached_property
    def base_digest(self) -> str:
        """SHA-256 of the whole base."""
        return total_digest(self.base)

    @cached_property
    def result_digest(self) -> str:
        """SHA-256 of the whole edited state."""
        return total_digest(self.result)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the gate refused the edit; empty where it did not."""
        return tuple(reason for step in self.history for reason in step.reasons)

    @property
    def accepted(self) -> bool:
        """Whether no gate refused any step."""
        return not self.reasons

    def apply(self, model: nn.Module, *, force: bool = False) -> None:
        """Write the edited values into the model's own tensors.

        Args:
            model: the base, or a copy that is equal to the bit; on any device, in any wrapper.
            force: apply it though its gate refused it.

        Raises:
            EditingError: the gate refused the edit, the model is not the base (the message names the
                differences), or the edit is applied to it already. The model is then as it was.
        """
        self._check_accepted(force)
        self._flip(model, self.base, self.result, "applied")

    def revert(self, model: nn.Module) -> None:
        """Write the base's values back into a model to which the edit is applied: every bit is as it was.

        Raises:
            EditingError: the model's state is not the one that the edit leads to.
        """
        self._flip(model, self.result, self.base, "reverted")

    def edited_state(self, state: Mapping[str, Tensor], *, force: bool = False) -> dict[str, Tensor]:
        """Return the edited state of a state by name, such as a file of weights holds; see `apply`."""
        self._check_accepted(force)
        return self._flipped_state(state, self.base, self.result, "applied")

    def reverted_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the base's state of an edited one; see `revert`."""
        return self._flipped_state(state, self.result, self.base, "reverted")

    def delta(self, base: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the change in numbers, in float64, of each changed tensor of floating point.

        Args:
            base: the base, as a model or as its state.

        Raises:
            EditingError: it is not the base.
        """
        before = state_of(base) if isinstance(base, nn.Module) else base
        after = self.edited_state(before, force=True)
        return {
            name: after[name].detach().cpu().double() - before[name].detach().cpu().double()
            for name in self.bits
            if before[name].is_floating_point()
        }

    def inverse(self) -> "Edit":
        """Return the edit that leads from the result back to the base; it has no history of its own."""
        return Edit(self.bits, self.result, self.base, (), self.model)

    def then(self, later: "Edit") -> "Edit":
        """Return the one edit that does what this and then `later` does, with the steps of both.

        Raises:
            EditingError: `later` was not made for this edit's result.
        """
        faults = differences(later.base, self.result)
        if faults:
            raise EditingError(
                f"the edit {later.method!r} was not made for the result of {self.method!r}: "
                f"{shortened(faults)}. "
                "Make it for a model to which the first one is applied."
            )
        bits = {}
        for name in self.base:
            parts = [edit.bits[name] for edit in (self, later) if name in edit.bits]
            if self.base[name] != later.result[name]:
                bits[name] = parts[0] if len(parts) == 1 else parts[0] ^ parts[1]
        return Edit(bits, self.base, later.result, (*self.history, *later.history), self.model)

    def save(self, path: Path | str) -> None:
        """Write the edit to one safetensors file, and its card for people beside it, as `NAME.md`."""
        edit_file.save(Path(path), self.bits, self._card(), self.card())

    @classmethod
    def load(cls, path: Path | str) -> "Edit":
        """Read what `save` wrote.

        Raises:
            EditingError: the file is absent, damaged, or no edit.
        """
        bits, card = edit_file.load(Path(path))
        try:
            marks = {
                side: {name: Mark(d, tuple(s), h) for name, (d, s, h) in card[side].items()}
                for side in ("base", "result")
            }
            history = tuple(EditStep.from_json(step) for step in card["history"])
            return cls(bits, marks["base"], marks["result"], history, card["model"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EditingError(f"{path} has a damaged card: {error!r}. Copy it again.") from error

    def _card(self) -> dict[str, Any]:
        sides = {
            side: {name: [m.dtype, list(m.shape), m.digest] for name, m in marks.items()}
            for side, marks in (("base", self.base), ("result", self.result))
        }
        return {"model": self.model, "history": [step.as_json() for step in self.history], **sides}

    def card(self) -> str:
        """Return what the edit is, for people."""
        total = sum(bits.numel() for bits in self.bits.values())
        lines = [
            f"Edit of {self.model} by {self.method}: {len(self.bits)} of {len(self.base)} tensors, "
            f"{total:,} bytes",
            "accepted" if self.accepted else "REFUSED: " + "; ".join(self.reasons),
            f"base   {self.base_digest}",
            f"result {self.result_digest}",
        ]
        for number, step in enumerate(self.history, 1):
            first, *rest = step.lines()
            lines += [f"step {number}: {first}", *rest]
        return "\n".join(lines)

    def _check_accepted(self, force: bool) -> None:
        if not self.accepted and not force:
            raise EditingError(
                f"the gate refused this edit: {'; '.join(self.reasons)}. force=True applies it nevertheless."
            )

    def _flip(self, model: nn.Module, start: Mapping[str, Mark], end: Mapping[str, Mark], word: str) -> None:
        state = state_of(model)
        values = self._flipped_state(state, start, end, word)
        held = {name: state[name].detach().clone() for name in self.bits}
        write_into(model, {name: values[name] for name in self.bits})
        faults = differences(end, marks_of(model))
        if faults:  # tensors that share memory without being one tensor
            write_into(model, held)
            raise EditingError(
                f"the edit cannot be {word}: writing one tensor of the model changes another "
                f"({shortened(faults)}). The model is as it was."
            )

    def _flipped_state(
        self,
        state: Mapping[str, Tensor],
        start: Mapping[str, Mark],
        end: Mapping[str, Mark],
        word: str,
    ) -> dict[str, Tensor]:
        """Return the state on the other side, checked to be `start` before and `end` after."""
        check_readable(state)
        found = {name: mark_of(tensor) for name, tensor in state.items()}
        faults = differences(start, found)
        if faults and found == dict(end):
            way_out = "revert it first" if word == "applied" else "apply it first"
            raise EditingError(f"the edit {self.method!r} is {word} to this model already; {way_out}.")
        if faults:
            raise EditingError(
                f"the edit {self.method!r} cannot be {word}: this is not the state of {self.model} that it "
                f"belongs to: {shortened(faults)}."
            )
        values = dict(state)
        with torch.no_grad():
            for name, bits in self.bits.items():
                values[name] = flipped(state[name], bits).to(state[name].device)
        changed = {name: mark_of(values[name]) for name in self.bits}
        wrong = differences({name: end[name] for name in self.bits}, changed)
        if wrong:
            raise EditingError(f"the edit {self.method!r} is damaged: {shortened(wrong)} than it should.")
        return values

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Edit):
            return NotImplemented
        return (self.base, self.result, self.history) == (other.base, other.result, other.history)

    def __hash__(self) -> int:
        return hash((self.base_digest, self.result_digest))

    def __str__(self) -> str:
        return self.card()


def compose(*edits: Edit) -> Edit:
    """Return the one edit that does what the edits do one after the other, with all their steps.

    Raises:
        EditingError: none are given, or one was not made for the result of the one before.
    """
    if not edits:
        raise EditingError("compose() needs at least one edit.")
    whole = edits[0]
    for later in edits[1:]:
        whole = whole.then(later)
    return whole


def edit_between(before: nn.Module, after: nn.Module, history: Iterable[EditStep] = ()) -> Edit:
    """Return the edit that leads from one model to another of the same names, types and shapes."""
    return Edit.between(state_of(before), state_of(after), history, type(unwrap(before)).__name__)
