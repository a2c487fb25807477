"""nfopt: a neural functional optimizer and editor for PyTorch training loops.

The public names are imported when they are first used, so that the command line answers without torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nfopt.editing import Edit, adapt
    from nfopt.errors import NfoptError, NfoptWarning
    from nfopt.optim import NFOptimizer
    from nfopt.optim.timm_registry import register_timm
    from nfopt.pruning import PruningMask, prune, prune_channels
    from nfopt.symmetry import PermutationSpec, trace_permutation_spec, verify

__version__ = version("nfopt")
__all__ = [
    "Edit",
    "NFOptimizer",
    "NfoptError",
    "NfoptWarning",
    "PermutationSpec",
    "PruningMask",
    "__version__",
    "adapt",
    "prune",
    "prune_channels",
    "register_timm",
    "trace_permutation_spec",
    "verify",
]
_HOMES = {
    "Edit": "nfopt.editing",
    "NfoptError": "nfopt.errors",
    "NFOptimizer": "nfopt.optim",
    "NfoptWarning": "nfopt.errors",
    "PermutationSpec": "nfopt.symmetry",
    "PruningMask": "nfopt.pruning",
    "adapt": "nfopt.editing",
    "prune": "nfopt.pruning",
    "prune_channels": "nfopt.pruning",
    "register_timm": "nfopt.optim.timm_registry",
    "trace_permutation_spec": "nfopt.symmetry",
    "verify": "nfopt.symmetry",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nfopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
