"""Noise-robust LLM fine-tuning: one `noiseproof:` block for Axolotl, LLaMA-Factory, TRL and Trainer.

`adopt(trainer, {"noisefit": {}})` is the way in for code of your own; recipes need only the block.
Importing this module loads the standard library alone.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noiseproof.trainer import adopt as adopt

__version__ = "0.1.0"
__all__ = ["__version__", "adopt"]


def __getattr__(name: str) -> Any:
    if name == "adopt":
        from noiseproof.trainer import adopt

        return adopt
    raise AttributeError(f"module 'noiseproof' has no attribute {name!r}")
