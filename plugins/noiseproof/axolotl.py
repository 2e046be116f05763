"""Axolotl: the plugin. Tested with 0.19.

Axolotl skips a plugin whose import raises ImportError and trains on without it, so everything that
is wrong here is a RuntimeError or a ValueError.
"""

from importlib import metadata
from typing import Any, Self

from pydantic import BaseModel, model_validator

from noiseproof.block import Recipe
from noiseproof.config import NoiseproofConfig, check

try:
    from axolotl.integrations.base import BasePlugin
except ImportError as error:
    raise RuntimeError(
        f"noiseproof.axolotl cannot import Axolotl's plugin base ({error}); install axolotl 0.19"
    ) from error

NAME = "noiseproof.axolotl.NoiseproofPlugin"


def recipe_of(recipe: Any) -> Recipe:
    """What methods may ask, from Axolotl's configuration (a pydantic model or its dump)."""
    # vars, not getattr: reading a deprecated field of a pydantic model warns the user
    fields = vars(recipe) if isinstance(recipe, BaseModel) else recipe
    settings = {name: value for name, value in fields.items() if name != "noiseproof"}
    rl = settings.get("rl")
    stage = str(getattr(rl, "value", rl)) if rl else "sft"
    if settings.get("reward_model") or settings.get("process_reward_model"):
        stage = "reward_model"
    return Recipe(framework="axolotl", stage=stage, settings=settings)


# The bare name counts: Axolotl merges all plugins' classes under it into one.
class NoiseproofArgs(BaseModel):
    """The one key that noiseproof adds to Axolotl's recipe."""

    noiseproof: NoiseproofConfig | None = None

    @model_validator(mode="after")
    def _noiseproof_fits_the_recipe(self) -> Self:
        if self.noiseproof is not None:
            check(self.noiseproof, recipe_of(self))
        return self


class NoiseproofPlugin(BasePlugin):
    """Hooks of a few lines; each returns at once for a recipe without our block."""

    def get_input_args(self) -> str:
        """Where Axolotl finds our key."""
        return "noiseproof.axolotl.NoiseproofArgs"

    def register(self, cfg: dict[str, Any]) -> None:
        """Refuse an Axolotl that was not tested."""
        version = metadata.version("axolotl")
        if cfg.get("noiseproof") is not None and not version.startswith("0.19."):
            raise RuntimeError(
                f"noiseproof is tested with axolotl 0.19, this is {version}; "
                "install axolotl==0.19.0, or remove the `noiseproof:` block"
            )

    def pre_model_load(self, cfg: Any) -> None:
        """Seed before the adapter is built; Axolotl 0.19 itself does not."""
        if cfg.get("noiseproof") is not None:
            from transformers import set_seed

            set_seed(42 if cfg.get("seed") is None else int(cfg["seed"]))

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Lay our mixins over the trainer."""
        block = cfg.get("noiseproof")
        if block is None:
            return
        from noiseproof.trainer import adopt

        adopt(
            trainer, block.to_dict() if hasattr(block, "to_dict") else dict(block), recipe_of(cfg)
        )
