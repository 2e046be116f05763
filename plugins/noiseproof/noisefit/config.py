"""YAML keys of NoiseFiT, and what it cannot be combined with."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from noiseproof.block import Block, MethodConfig, Recipe
from noiseproof.noisefit.conflicts import conflicts, warnings

Layer = Annotated[int, Field(ge=0)]
Factor = Annotated[float, Field(gt=0)]


class RDropConfig(Block):
    """R-Drop, the honest control: the same packing, dropout in place of noise."""

    alpha: float = Field(1.0, ge=0, description="Weight of the symmetric KL.")
    dropout: float = Field(0.05, ge=0, lt=1, description="Rate of every dropout in the model.")


class CalibrationConfig(Block):
    """How `layers: auto` probes the model before training."""

    batches: int = Field(2, ge=1, description="Training batches to probe with, per process.")
    draws: int = Field(4, ge=1, description="Noise draws per layer and scale.")
    scale_factors: list[Factor] = Field(
        [0.25, 0.5, 1.0, 1.5, 2.0], min_length=1, description="Scales to try, units of 1/sqrt(H)."
    )
    max_ce_delta_ratio: float = Field(
        0.02, ge=0, description="A layer may raise the clean loss by this share at most."
    )
    depth_bands: int = Field(3, ge=1, description="Spread the layers over so many depth bands.")
    target_kl_fraction: float = Field(
        0.75, gt=0, le=1, description="Target KL as a share of the selected layers' median."
    )
    policy_file: str | None = Field(
        None, description="Read the chosen layers from here; written when it does not exist."
    )

    @model_validator(mode="after")
    def _increasing(self) -> Self:
        factors = self.scale_factors
        if any(a >= b for a, b in zip(factors, factors[1:], strict=False)):
            raise ValueError(f"scale_factors must rise strictly, not {factors}")
        return self


class NoiseFitConfig(MethodConfig):
    """Adaptive hidden-state noise with a hybrid loss (NoiseFiT, arXiv 2504.03302)."""

    preset: Literal["v2", "v1"] = Field(
        "v2", description="v2: relative noise, shifted masks; v1: the authors' first release."
    )
    loss: Literal["full", "ce_kl", "ce_noisy", "kl_only", "consistency_only", "rdrop"] = Field(
        "full", description="Which terms; kl_only and consistency_only are ablations."
    )
    layers: Literal["auto", "snr"] | list[Layer] | None = Field(
        None, description="auto (default under v2), snr (default under v1), or layer indices."
    )
    num_noise_layers: int | None = Field(
        None, ge=1, description="snr: how many (3); auto: at most (ceil(sqrt(number of layers)))."
    )
    snr_format: Literal["largest", "lowest"] = Field(
        "largest", description="snr: which end of the ranking."
    )
    noise_scale: float | None = Field(
        None, gt=0, description="Noise in units of 1/sqrt(hidden_size), 1 by default; v2 only."
    )
    noise_std: float | None = Field(
        None, gt=0, description="The first release's noise strength, 0.1 by default; v1 only."
    )
    hybrid_loss_alpha: float = Field(
        0.5, ge=0, le=1, description="Share of cross-entropy; the rest goes to the soft loss."
    )
    lambda_consistency: float | None = Field(
        None,
        ge=0,
        description="Weight of KL between the noisy branches: 0.05 (v1: 0.1); full only.",
    )
    temperature: float = Field(1.0, gt=0, description="Softmax temperature of the KL terms.")
    rdrop: RDropConfig | None = Field(None, description="Settings of `loss: rdrop`.")
    calibration: CalibrationConfig | None = Field(None, description="Settings of `layers: auto`.")
    chunk_size: int = Field(256, ge=1, description="Positions per chunk of the output head.")
    noise_rng: Literal["stateless", "fast"] = Field(
        "stateless",
        description="stateless: same noise on any number of processes; fast: the device's RNG.",
    )
    seed: int = Field(0, ge=0, description="Seed of the noise.")

    @property
    def layer_choice(self) -> str | list[int]:
        """`layers` with its default, which depends on the preset."""
        return self.layers or ("snr" if self.preset == "v1" else "auto")

    @property
    def std(self) -> float:
        """noise_std with its default."""
        return 0.1 if self.noise_std is None else self.noise_std

    @property
    def scale(self) -> float:
        """noise_scale with its default."""
        return 1.0 if self.noise_scale is None else self.noise_scale

    @property
    def lam(self) -> float:
        """lambda_consistency with its default, which depends on the preset."""
        if self.lambda_consistency is not None:
            return self.lambda_consistency
        return 0.1 if self.preset == "v1" else 0.05

    @property
    def probing(self) -> CalibrationConfig:
        """calibration with its defaults."""
        return self.calibration or CalibrationConfig()

    @property
    def branches(self) -> tuple[bool, int]:
        """Is there a clean branch, and how many noisy ones."""
        return {
            "full": (True, 2),
            "ce_kl": (True, 1),
            "ce_noisy": (False, 1),
            "kl_only": (True, 1),
            "consistency_only": (False, 2),
            "rdrop": (False, 2),
        }[self.loss]

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.preset == "v1":
            if self.loss != "full":
                raise ValueError(f"preset v1 has `loss: full` only, not {self.loss}; use preset v2")
            if self.layers == "auto":
                raise ValueError("preset v1 has no `layers: auto`; use snr or a list of layers")
            if self.noise_scale is not None:
                raise ValueError("noise_scale belongs to preset v2; under v1 set noise_std")
        elif self.noise_std is not None:
            raise ValueError("noise_std belongs to preset v1; under v2 set noise_scale")
        if isinstance(self.layers, list):
            if not self.layers:
                raise ValueError("layers is an empty list; name a layer, or write auto or snr")
            if len(set(self.layers)) != len(self.layers):
                raise ValueError(f"layers names one twice: {self.layers}")
            if self.num_noise_layers is not None:
                raise ValueError("num_noise_layers has no meaning beside a list of layers; drop it")
        if self.calibration is not None and (self.layer_choice != "auto" or self.loss == "rdrop"):
            raise ValueError("calibration belongs to `layers: auto`; drop it, or the other setting")
        if self.loss == "rdrop":
            given = ["layers", "noise_scale", "noise_std", "num_noise_layers"]
            if clash := [name for name in given if getattr(self, name) is not None]:
                raise ValueError(f"loss rdrop adds no noise; drop {', '.join(clash)}")
        elif self.rdrop is not None:
            raise ValueError(f"rdrop belongs to `loss: rdrop`, not to `loss: {self.loss}`")
        return self

    def mixin(self) -> type[Any]:
        """The trainer mixin."""
        from noiseproof.noisefit.mixin import NoiseFitMixin

        return NoiseFitMixin

    def conflicts(self, recipe: Recipe) -> list[str]:
        """Why this recipe cannot run with noisefit."""
        return conflicts(recipe)

    def warnings(self, recipe: Recipe) -> list[str]:
        """What works, but not as one might expect."""
        return warnings(
            recipe, self.loss, self.layer_choice == "auto" and self.noise_scale is not None
        )
