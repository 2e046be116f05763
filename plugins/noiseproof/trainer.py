"""adopt(): lay noiseproof's mixins over a trainer that a framework has built."""

import logging
from typing import Any

from noiseproof.block import Recipe
from noiseproof.config import NoiseproofConfig, check
from noiseproof.guard import GuardMixin

logger = logging.getLogger(__name__)


def adopt(
    trainer: Any, config: NoiseproofConfig | dict[str, Any], recipe: Recipe | None = None
) -> Any:
    """Give a built trainer the methods of a `noiseproof:` block, and return it.

    Works on transformers' Trainer and everything derived from it (TRL, Axolotl, LLaMA-Factory),
    before `trainer.train()`. The trainer's class becomes a subclass of its own, so every override
    below calls the framework's method with `super()`.

    Raises:
        ValueError: the block is wrong, or the trainer cannot work with it; says what to change.
    """
    config = check(config, recipe)
    if "compute_loss" in vars(trainer):
        raise ValueError(
            f"{type(trainer).__name__} has its own `compute_loss` set on the instance, which would "
            "hide noiseproof's; remove the plugin or code that sets it (Axolotl's llm_compressor does)"
        )
    mixins: tuple[Any, ...] = tuple(block.mixin() for _, block in config.enabled())
    base = type(trainer)
    trainer.__class__ = type(f"Noiseproof{base.__name__}", (*mixins, GuardMixin, base), {})
    trainer.noiseproof = config
    for mixin in (GuardMixin, *mixins):
        mixin.setup(trainer)
    return trainer
