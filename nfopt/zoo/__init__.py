"""Zoos: thousands of small nets of one architecture, trained side by side and kept in one file."""

from nfopt.zoo.file import load_zoo, save_zoo
from nfopt.zoo.zoo import SIDES, Zoo, ZooError, join_zoos, stack_nets

__all__ = ["SIDES", "Zoo", "ZooError", "join_zoos", "load_zoo", "save_zoo", "stack_nets"]
