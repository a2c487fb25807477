"""The permutation symmetry of a model: axis terms, the spec, its derivation by tracing, and its proof."""

from nfopt.symmetry.axes import Atom, Axis, Prod, Sum
from nfopt.symmetry.report import NegativeControl, VerificationReport
from nfopt.symmetry.skeleton import unwrap
from nfopt.symmetry.spec import Permutation, PermutationSpec, TensorAxes
from nfopt.symmetry.summary import FixedRow, GroupRow, fixed_rows, group_rows
from nfopt.symmetry.trace import trace_permutation_spec
from nfopt.symmetry.verify import verify

__all__ = [
    "Atom",
    "Axis",
    "FixedRow",
    "GroupRow",
    "NegativeControl",
    "Permutation",
    "PermutationSpec",
    "Prod",
    "Sum",
    "TensorAxes",
    "VerificationReport",
    "fixed_rows",
    "group_rows",
    "trace_permutation_spec",
    "unwrap",
    "verify",
]
