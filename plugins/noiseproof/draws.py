"""Stateless Gaussian draws: a pure function of (seed, step, layer, branch, global row).

So a draw is the same on one process or on many, with or without gradient accumulation, in a
checkpoint's recomputation and after a resume; nothing has to be saved.
"""

import hashlib

import torch

_BLOCK = 16  # torch fills CPU normals in blocks of 16, so only whole blocks are prefix-stable


def key(*parts: int) -> int:
    """A 63-bit seed from integers, independent of Python's hash seed and of the machine."""
    text = ",".join(str(int(part)) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def normal_rows(keys: list[int], length: int, width: int, device: torch.device) -> torch.Tensor:
    """One standard normal [length, width] per key, fp32, stacked to [len(keys), length, width].

    A longer padding only appends: row i of a batch padded to 96 begins as it does padded to 64
    (on a CPU; a GPU's generator gives that for equal lengths only).
    """
    size = length * width
    whole = -(-size // _BLOCK) * _BLOCK
    out = torch.empty(len(keys), length, width, dtype=torch.float32, device=device)
    generator = torch.Generator(device=device)
    for row, seed in enumerate(keys):
        generator.manual_seed(seed)
        flat = torch.randn(whole, generator=generator, dtype=torch.float32, device=device)
        out[row] = flat[:size].view(length, width)
    return out
