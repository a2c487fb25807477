"""Zoos: thousands of small nets of one architecture, trained side by side and kept in one file."""

from nfopt.zoo.classifiers import HyperRanges, binary_classifiers, classifiers
from nfopt.zoo.file import load_zoo, save_zoo
from nfopt.zoo.inrs import image_inrs, sine_inrs
from nfopt.zoo.machine import Machine
from nfopt.zoo.members import Members
from nfopt.zoo.siren import Siren, SirenConfig, render, siren
from nfopt.zoo.siren_fit import FitConfig, psnr_db
from nfopt.zoo.small_cnn import small_cnn
from nfopt.zoo.transforms import (
    Compose,
    FlipSigns,
    Mask,
    Noise,
    Permute,
    ScaleNeurons,
    ShiftPhases,
    Transform,
    views,
)
from nfopt.zoo.zoo import SIDES, Zoo, ZooError, join_zoos, stack_nets

__all__ = [
    "SIDES",
    "Compose",
    "FitConfig",
    "FlipSigns",
    "HyperRanges",
    "Machine",
    "Mask",
    "Members",
    "Noise",
    "Permute",
    "ScaleNeurons",
    "ShiftPhases",
    "Siren",
    "SirenConfig",
    "Transform",
    "Zoo",
    "ZooError",
    "binary_classifiers",
    "classifiers",
    "image_inrs",
    "join_zoos",
    "load_zoo",
    "psnr_db",
    "render",
    "save_zoo",
    "sine_inrs",
    "siren",
    "small_cnn",
    "stack_nets",
    "views",
]
