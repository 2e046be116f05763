"""MethodConfig: the base of every method's YAML block."""

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Block(BaseModel):
    """A mapping in the recipe: unknown keys are errors that name the nearest known one."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = list(cls.model_fields)
        for key in data:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
                hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}"
                raise ValueError(f"unknown key `{key}`; {hint}")
        return data


class MethodConfig(Block):
    """A method's block; the method is on exactly when its block is there."""

    def mixin(self) -> type[Any]:
        """The trainer mixin; only here may torch be imported."""
        raise NotImplementedError  # every method overrides this one line

    def conflicts(self, recipe: "Recipe") -> list[str]:
        """What in the recipe this method cannot work with: one sentence each, with the mend."""
        return []

    def warnings(self, recipe: "Recipe") -> list[str]:
        """What works in that recipe, but not as one might expect."""
        return []


class Recipe(BaseModel):
    """What a method may ask about the recipe around its block, in words of both frameworks.

    Adapters fill it from their own keys. `keys` holds the framework's own name for a setting,
    so that a refusal can name the line that the user has to change.
    """

    framework: str
    stage: str = "sft"
    settings: dict[str, Any] = {}

    def get(self, key: str) -> Any:
        """The value of a framework's key, None when the recipe does not set it."""
        return self.settings.get(key)
