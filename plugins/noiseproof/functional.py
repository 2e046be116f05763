"""Pure tensor code that several methods share. Shapes: B rows, S positions."""

import torch
from torch.nn import functional as F


def shift_labels(labels_BS: torch.Tensor) -> torch.Tensor:
    """labels[t + 1] at position t, -100 at the end: the token that position t predicts, [B, S]."""
    return F.pad(labels_BS, (0, 1), value=-100)[..., 1:]
