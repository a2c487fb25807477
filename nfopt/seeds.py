"""Counter-based seeds: every random draw of long work is a function of where it happens, and of no more."""

import hashlib

import torch


def derive_seed(*path: int | str) -> int:
    """Return a 63-bit seed for the draw at `path`, such as `(meta_seed, "slot", 3, "episode", 7)`.

    Equal paths give equal seeds and different paths independent ones, so nothing but the counters has to be
    stored for an exact resume, and a task's draws do not depend on the process that runs it.
    """
    text = "/".join(f"{type(part).__name__}:{part}" for part in path)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*path: int | str) -> torch.Generator:
    """Return a CPU generator seeded with `derive_seed(*path)`."""
    return torch.Generator().manual_seed(derive_seed(*path))
