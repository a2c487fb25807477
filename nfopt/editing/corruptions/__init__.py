"""Corruptions of images: seeded, composable, at the severities of ImageNet-C and CIFAR-10-C."""

# The corruptions enter themselves.
from nfopt.editing.corruptions import blur, digital, geometry, noise, tone
from nfopt.editing.corruptions.corruption import CORRUPTIONS, Domain, corrupt, corruption

__all__ = [
    "CORRUPTIONS",
    "Domain",
    "blur",
    "corrupt",
    "corruption",
    "digital",
    "geometry",
    "noise",
    "tone",
]
