"""NoiseproofConfig: the `noiseproof:` block. A method is an import and a field; nothing else."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from pydantic import Field, ValidationError, model_validator

from noiseproof.block import Block, MethodConfig, Recipe
from noiseproof.noisefit.config import NoiseFitConfig


class NoiseproofConfig(Block):
    """The whole block. `{}` is a plain run with seed, receipt and NaN guard."""

    noisefit: NoiseFitConfig | None = Field(
        None, description="Adaptive hidden-state noise with a hybrid loss (arXiv 2504.03302)."
    )

    @model_validator(mode="before")
    @classmethod
    def _unfold(cls, data: Any) -> Any:
        """Axolotl's command line splits `--noiseproof__a__b=1` only once; undo that, refuse nulls."""
        if not isinstance(data, dict):
            raise ValueError(
                f"`noiseproof` must be a mapping, not {data!r}; write `noiseproof: {{}}`"
            )
        out = deepcopy({key: value for key, value in data.items() if "__" not in str(key)})
        for key in (key for key in data if "__" in str(key)):
            *path, last = str(key).split("__")
            at = out
            for name in path:
                if at.get(name) is None:
                    at[name] = {}
                at = at[name]
                if not isinstance(at, dict):
                    raise ValueError(f"`{name}` in `{key}` is not a mapping, so it has no `{last}`")
            at[last] = data[key]
        for name in (name for name, value in out.items() if value is None):
            raise ValueError(f"`{name}:` has no value; write `{name}: {{}}` to switch it on")
        return out

    def enabled(self) -> Iterator[tuple[str, MethodConfig]]:
        """The methods whose block is there, in field order."""
        for name in type(self).model_fields:
            block = getattr(self, name)
            if block is not None:
                yield name, block

    def conflicts(self, recipe: Recipe) -> list[str]:
        """Every reason why this block cannot work in that recipe."""
        return [line for _, block in self.enabled() for line in block.conflicts(recipe)]

    def resolved(self) -> dict[str, Any]:
        """The block with every default filled in, ready for JSON and for validation anew."""
        return self.model_dump(mode="json", exclude_none=True, exclude_unset=False)


def check(block: Any, recipe: Recipe | None = None) -> NoiseproofConfig:
    """Validate a block; a ValueError has one line per mistake with the whole path of its key."""
    if isinstance(block, NoiseproofConfig):
        config = block
    else:
        try:
            config = NoiseproofConfig.model_validate(block)
        except ValidationError as error:
            raise ValueError("\n".join(map(_sentence, error.errors()))) from None
    reasons = config.conflicts(recipe) if recipe is not None else []
    if reasons:
        raise ValueError("\n".join(reasons))
    return config


def _sentence(error: Any) -> str:
    # pydantic names the members of a union in brackets; no user wrote those
    names = [str(part) for part in error["loc"] if "[" not in str(part)]
    path = ".".join(["noiseproof", *names])
    text = str(error["msg"]).removeprefix("Value error, ")
    got = "" if error["type"] == "value_error" else f" (got {error['input']!r})"
    return f"{path}: {text}{got}"
