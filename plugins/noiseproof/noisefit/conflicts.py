"""What noisefit refuses in a recipe, by the framework's own key, each with the mend."""

from typing import Any

from noiseproof.block import Recipe

_OWN_LOSS = "it replaces the loss, and noisefit's would never run; remove it or the noisefit block"
_REFUSED: dict[str, dict[str, str]] = {
    "axolotl": {
        "kd_trainer": _OWN_LOSS,
        "orpo_alpha": _OWN_LOSS,
        "use_eaft": _OWN_LOSS,
    },
    "llamafactory": {
        "use_dft_loss": _OWN_LOSS,
        "use_eaft_loss": _OWN_LOSS,
        "use_asft_loss": _OWN_LOSS,
        "use_mca": "Megatron has a trainer of its own that noisefit cannot reach; set it to false",
        "use_hyper_parallel": "it has a trainer of its own that noisefit cannot reach; set it to false",
        "use_kt": "KTransformers has a trainer of its own that noisefit cannot reach; set it to false",
    },
}
_DEGREES = ("context_parallel_size", "tensor_parallel_size", "sequence_parallel_degree")
_STAGES = {"axolotl": ("sft",), "llamafactory": ("sft", "pt")}


def conflicts(recipe: Recipe) -> list[str]:
    """One sentence per setting that noisefit cannot work with."""
    found = []
    if recipe.stage not in _STAGES.get(recipe.framework, ("sft",)):
        key = {"axolotl": "rl / reward_model", "llamafactory": "stage"}.get(
            recipe.framework, "stage"
        )
        found.append(
            f"noiseproof.noisefit: `{key}` is {recipe.stage}, but noisefit is a loss for supervised "
            "fine-tuning; remove the noisefit block or train with supervised fine-tuning"
        )
    for key, why in _REFUSED.get(recipe.framework, {}).items():
        if recipe.get(key):
            found.append(f"noiseproof.noisefit: `{key}` is set: {why}")
    for plugin in recipe.get("plugins") or []:
        if "diffusion" in str(plugin).lower():
            found.append(f"noiseproof.noisefit: the plugin {plugin} is listed: {_OWN_LOSS}")
    if (smoothing := recipe.get("label_smoothing_factor") or 0) > 0:
        found.append(
            f"noiseproof.noisefit: `label_smoothing_factor` is {smoothing}, which takes the labels "
            "away from the model; set it to 0"
        )
    for key in _DEGREES:
        if (degree := recipe.get(key) or 1) > 1:
            found.append(
                f"noiseproof.noisefit: `{key}` is {degree}; a process then holds a slice of each row, "
                "which noisefit does not know how to noise; set it to 1"
            )
    packing = _packs(recipe)
    if packing and _flash(recipe):
        mend = "attn_implementation: sdpa" if recipe.framework == "axolotl" else "flash_attn: sdpa"
        found.append(
            f"noiseproof.noisefit: rows packed by `{packing}` would see each other under "
            f"FlashAttention or flex attention, as noisefit tiles rows; set `{mend}` or do not pack"
        )
    return found


def warnings(recipe: Recipe, loss: str, scale_is_calibrated: bool) -> list[str]:
    """What runs, but deserves a word."""
    found = []
    if recipe.get("neftune_noise_alpha"):
        found.append(
            "`neftune_noise_alpha` noises the embeddings of every branch, noisefit's clean teacher "
            "included; remove it for the paper's method"
        )
    if loss in ("kl_only", "consistency_only"):
        found.append(f"noisefit.loss {loss} is an ablation; its authors report that it collapses")
    if scale_is_calibrated:
        found.append(
            "noisefit.noise_scale is not used by `layers: auto`, which measures the scales"
        )
    if recipe.get("torch_compile"):
        found.append("noisefit under torch_compile is untested; use `noise_rng: fast` if it breaks")
    return found


def _packs(recipe: Recipe) -> str | None:
    keys = ("sample_packing",) if recipe.framework == "axolotl" else ("packing", "neat_packing")
    return next((key for key in keys if recipe.get(key)), None)


def _flash(recipe: Recipe) -> bool:
    value: Any = recipe.get("attn_implementation") or recipe.get("flash_attn")
    name = str(getattr(value, "value", value) or "")
    on = any(recipe.get(key) for key in ("flash_attention", "flex_attention"))
    return on or name.startswith(("flash", "flex", "fa2", "fa3"))
