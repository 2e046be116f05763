"""R-Drop's dropout: switched on for a training, put back afterwards."""

from collections.abc import Callable
from typing import Any

from torch import nn

from noiseproof.noisefit.config import NoiseFitConfig


def switch_on(model: Any, config: NoiseFitConfig) -> Callable[[], None]:
    """Set attention dropout attributes and every nn.Dropout (adapters' too); returns the undo."""
    rate = config.rdrop.dropout if config.rdrop else 0.05
    before: list[tuple[Any, str, Any]] = []
    for module in model.modules():
        names = ["p"] if isinstance(module, nn.Dropout) else []
        names += [n for n in ("attention_dropout", "attn_dropout") if _is_rate(module, n)]
        for name in names:
            before.append((module, name, getattr(module, name)))
            setattr(module, name, rate)

    def undo() -> None:
        for module, name, value in before:
            setattr(module, name, value)

    return undo


def _is_rate(module: nn.Module, name: str) -> bool:
    return isinstance(getattr(module, name, None), int | float)
