"""Checkpoints of editors: which network edits, checked against its configuration."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from nfopt.checkpoints import Checkpoint, load_checkpoint
from nfopt.editing.editor.config import EditorConfig
from nfopt.editing.editor.statistics_editor import StatisticsConfig, StatisticsEditor
from nfopt.editing.editor.weight_editor import WeightEditor
from nfopt.errors import CheckpointError, NfoptError

CHECKPOINT_KIND = "weight-editor"
STATISTICS_KIND = "statistics-editor"
NOMINAL = "nominal"
USES = ("weights", "images", "labels")

AnyEditor = TypeVar("AnyEditor", WeightEditor, StatisticsEditor)


def editor_checkpoint(
    editor: WeightEditor | StatisticsEditor, card: Mapping[str, Any], name: str = "unsaved"
) -> Checkpoint:
    """Bundle an editor's weights and configuration for `nfopt.checkpoints.save_checkpoint`.

    Args:
        editor: the editor.
        card: recipe, seeds, scores; "uses" lists what it was trained to look at (left out: anything).
        name: where it comes from.
    """
    theta = {key: value.detach().clone() for key, value in editor.state_dict().items()}
    kind = CHECKPOINT_KIND if isinstance(editor, WeightEditor) else STATISTICS_KIND
    return Checkpoint(kind, theta, asdict(editor.config), card, name)


@dataclass(frozen=True, eq=False)
class LoadedEditor:
    """An editor that was read.

    Attributes:
        editor: in evaluation mode, no weight of which requires a gradient.
        name: where it came from.
        digest: SHA-256 of its weights.
        uses: what it was trained to look at: "weights", "images", "labels".
    """

    editor: WeightEditor
    name: str
    digest: str
    uses: tuple[str, ...]


def read_editor(checkpoint: str | Path | Checkpoint) -> LoadedEditor:
    """Return an editor with what one must know about it.

    Args:
        checkpoint: a bundled checkpoint's name, "nominal" (the fresh editor, which has learned nothing), a
            path, or a checkpoint in memory.

    Raises:
        UnknownNameError: there is no checkpoint of that name.
        CheckpointError: the checkpoint is damaged, of another version, or not an editor's.
    """
    if checkpoint == NOMINAL:
        editor = WeightEditor(EditorConfig())
        return LoadedEditor(_frozen(editor), NOMINAL, NOMINAL, USES)
    found, editor = _read(checkpoint, CHECKPOINT_KIND, lambda config: WeightEditor(EditorConfig(**config)))
    uses = tuple(dict.fromkeys(str(use) for use in found.card.get("uses", USES)))
    return LoadedEditor(_frozen(editor), found.name, found.digest, uses)


@dataclass(frozen=True, eq=False)
class LoadedStatisticsEditor:
    """A statistics editor that was read.

    Attributes:
        editor: in evaluation mode, no weight of which requires a gradient.
        name: where it came from.
        digest: SHA-256 of its weights.
    """

    editor: StatisticsEditor
    name: str
    digest: str


def read_statistics_editor(checkpoint: str | Path | Checkpoint) -> LoadedStatisticsEditor:
    """Return a statistics editor; names and errors as for `read_editor`."""
    if checkpoint == NOMINAL:
        return LoadedStatisticsEditor(_frozen(StatisticsEditor(StatisticsConfig())), NOMINAL, NOMINAL)
    found, editor = _read(
        checkpoint, STATISTICS_KIND, lambda config: StatisticsEditor(StatisticsConfig(**config))
    )
    return LoadedStatisticsEditor(_frozen(editor), found.name, found.digest)


def _read(
    checkpoint: str | Path | Checkpoint, kind: str, build: Callable[[Mapping[str, Any]], AnyEditor]
) -> tuple[Checkpoint, AnyEditor]:
    found = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint, kind=kind)
    try:
        editor = build(found.config)
    except (TypeError, NfoptError) as error:
        raise CheckpointError(
            f"{found.name} was written for another version of the editor ({error})."
        ) from error
    expected = {name: tuple(value.shape) for name, value in editor.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in found.theta.items()}
    if expected != given:
        wrong = sorted(set(expected.items()) ^ set(given.items()))
        raise CheckpointError(f"the weights of {found.name} do not fit its configuration: {wrong[:4]}.")
    editor.load_state_dict(dict(found.theta))
    return found, editor


def _frozen(editor: AnyEditor) -> AnyEditor:
    return editor.eval().requires_grad_(False)
