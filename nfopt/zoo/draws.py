"""Random draws of a zoo: each is a function of the zoo's seed and of what it is for, and of nothing else."""

import hashlib

import torch


def generator_of(*path: int | str) -> torch.Generator:
    """Return a CPU generator for the draws at `path`, such as `(seed, "train", 3, "start")`.

    Equal paths give equal draws and different paths independent ones, so a net depends neither on the nets
    beside it nor on the order in which they are made.
    """
    text = "/".join(f"{type(part).__name__}:{part}" for part in path)
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
    return torch.Generator().manual_seed(seed)
