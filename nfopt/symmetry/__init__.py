"""The permutation symmetry of a model: axis terms, the spec, its derivation by tracing, and its proof."""

from nfopt.symmetry.axes import Atom, Axis, Prod, Sum
from nfopt.symmetry.spec import Permutation, PermutationSpec, TensorAxes

__all__ = ["Atom", "Axis", "Permutation", "PermutationSpec", "Prod", "Sum", "TensorAxes"]
