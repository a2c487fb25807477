"""Checkpoints of editors: which network edits, checked against its configuration."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nfopt.checkpoints import Checkpoint, load_checkpoint
from nfopt.editing.editor.config import EditorConfig
from nfopt.editing.editor.weight_editor import WeightEditor
from nfopt.errors import CheckpointError, NfoptError

CHECKPOINT_KIND = "weight-editor"
NOMINAL = "nominal"
USES = ("weights", "images", "labels")


def editor_checkpoint(editor: WeightEditor, card: Mapping[str, Any], name: str = "unsaved") -> Checkpoint:
    """Bundle an editor's weights and configuration for `nfopt.checkpoints.save_checkpoint`.

    Args:
        editor: the editor.
        card: recipe, seeds, scores; "uses" lists what it was trained to look at (left out: anything).
        name: where it comes from.
    """
    theta = {key: value.detach().clone() for key, value in editor.state_dict().items()}
    return Checkpoint(CHECKPOINT_KIND, theta, asdict(editor.config), card, name)


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
    found = (
        checkpoint
        if isinstance(checkpoint, Checkpoint)
        else load_checkpoint(checkpoint, kind=CHECKPOINT_KIND)
    )
    try:
        editor = WeightEditor(EditorConfig(**found.config))
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
    uses = tuple(dict.fromkeys(str(use) for use in found.card.get("uses", USES)))
    return LoadedEditor(_frozen(editor), found.name, found.digest, uses)


def _frozen(editor: WeightEditor) -> WeightEditor:
    return editor.eval().requires_grad_(False)
