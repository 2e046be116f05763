"""Axolotl drops unknown keys without a word, so our block enables its plugin by itself.

Applied by `_autoload` inside Axolotl's own import: nothing of Axolotl may be imported at the top.
"""

import functools
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

logger = logging.getLogger(__name__)
NAME = "noiseproof.axolotl.NoiseproofPlugin"


def _enable(module: ModuleType) -> None:
    original = module.validate_config
    if hasattr(original, "__noiseproof__"):
        return

    @functools.wraps(original)
    def validate_config(cfg: Any, *args: Any, **kwargs: Any) -> Any:
        # `in` and not a truth value: `noiseproof:` without a value has to be reported, too
        if "noiseproof" in cfg and NAME not in (cfg.get("plugins") or []):
            from axolotl.integrations.base import PluginManager

            cfg["plugins"] = [*(cfg.get("plugins") or []), NAME]
            manager = PluginManager.get_instance()
            manager.register(NAME)
            manager.plugins[NAME].register(cfg)
            logger.warning("noiseproof: enabled by its block; `plugins: [%s]` says so openly", NAME)
        return original(cfg, *args, **kwargs)

    validate_config.__noiseproof__ = True  # type: ignore[attr-defined]
    module.validate_config = validate_config  # type: ignore[attr-defined]


PATCHES: dict[str, Callable[[ModuleType], None]] = {"axolotl.utils.config": _enable}
