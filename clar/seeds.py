"""Random numbers keyed by a seed and what they are for.

No generator is ever carried along: each use derives its own from (seed, purpose, position), so a run that resumes at
step 1,000 draws what an undisturbed run draws there, and one more use shifts no other.
"""

import hashlib

import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose of one trial, the same on any machine: `derive(0, "augment", step)`."""
    key = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator on `device` for one purpose of one trial."""
    return torch.Generator(device).manual_seed(derive(seed, *purpose))
