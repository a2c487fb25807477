"""The learned editor: a role-tied network that proposes edits of any model's weights and statistics."""

from nfopt.editing.editor.checkpoint import (
    LoadedEditor,
    LoadedStatisticsEditor,
    editor_checkpoint,
    read_editor,
    read_statistics_editor,
)
from nfopt.editing.editor.config import EditorConfig
from nfopt.editing.editor.evidence import Observed, Targets, observe
from nfopt.editing.editor.forward import NetForward, NormState
from nfopt.editing.editor.rounds import edited_tensors
from nfopt.editing.editor.statistics_editor import StatisticsConfig, StatisticsEditor
from nfopt.editing.editor.weight_editor import Proposal, WeightEditor

__all__ = [
    "EditorConfig",
    "LoadedEditor",
    "LoadedStatisticsEditor",
    "NetForward",
    "NormState",
    "Observed",
    "Proposal",
    "StatisticsConfig",
    "StatisticsEditor",
    "Targets",
    "WeightEditor",
    "edited_tensors",
    "editor_checkpoint",
    "observe",
    "read_editor",
    "read_statistics_editor",
]
