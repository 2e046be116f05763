"""Which layers get noise, and how much: explicit list, snr, or auto calibration."""

import math
from typing import Any

from noiseproof import hooks
from noiseproof.noisefit.config import NoiseFitConfig


def check_indices(config: NoiseFitConfig, num_layers: int) -> None:
    """Explicit layers and counts against the model.

    Raises:
        ValueError: an index or a count lies beyond the model's layers.
    """
    choice = config.layer_choice
    if isinstance(choice, list) and (beyond := [i for i in choice if i >= num_layers]):
        raise ValueError(
            f"noiseproof.noisefit.layers: {beyond} lie beyond this model, which has {num_layers} "
            f"decoder layers; use indices from 0 to {num_layers - 1}"
        )
    if (count := config.num_noise_layers) is not None and count > num_layers:
        raise ValueError(
            f"noiseproof.noisefit.num_noise_layers: {count} is more than this model's {num_layers} "
            "decoder layers"
        )


def must_pack_early(causal_lm: Any) -> bool:
    """ALiBi biases are [B * heads, 1, S]: not to be tiled by rows, so branches part at the start."""
    config = causal_lm.config
    return bool(getattr(config, "alibi", False)) or config.model_type in ("bloom", "mpt")


def scales(
    trainer: Any, causal_lm: Any, config: NoiseFitConfig
) -> tuple[dict[int, float], dict[str, Any] | None]:
    """Noise scale per layer, and the calibration's policy when there was one."""
    if config.loss == "rdrop":
        return {}, None
    choice = config.layer_choice
    if isinstance(choice, list):
        return _relative(sorted(choice), causal_lm, config), None
    if choice == "snr":
        from noiseproof.noisefit.probe import snr_choice

        return _relative(snr_choice(trainer, causal_lm, config), causal_lm, config), None
    from noiseproof.noisefit.probe import auto_choice

    return auto_choice(trainer, causal_lm, config)


def _relative(layers: list[int], causal_lm: Any, config: NoiseFitConfig) -> dict[int, float]:
    hidden = causal_lm.get_output_embeddings().weight.shape[-1]
    assert hooks.decoder_layers(causal_lm)
    return dict.fromkeys(layers, config.scale / math.sqrt(hidden))
