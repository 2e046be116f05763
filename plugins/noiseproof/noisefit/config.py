"""YAML keys of NoiseFiT."""

from typing import Any, Literal

from pydantic import Field

from noiseproof.block import MethodConfig


class NoiseFitConfig(MethodConfig):
    """Adaptive hidden-state noise with a hybrid loss (NoiseFiT, arXiv 2504.03302)."""

    preset: Literal["v2", "v1"] = Field("v2", description="v1 reproduces the authors' first code.")

    def mixin(self) -> type[Any]:
        from noiseproof.noisefit.mixin import NoiseFitMixin

        return NoiseFitMixin
