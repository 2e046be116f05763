"""Find the causal LM, its decoder and its decoder layers inside whatever wraps them."""

from typing import Any

from torch import nn


def causal_lm_of(model: Any) -> nn.Module:
    """The CausalLM below DDP, FSDP, torch.compile and PEFT.

    Raises:
        ValueError: the model has no output head, so it is no causal language model.
    """
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif isinstance(getattr(model, "module", None), nn.Module):
            model = model.module
        else:
            break
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder model; noisefit works on causal "
            "(decoder-only) models"
        )
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        raise ValueError(f"{type(model).__name__} has no output head; noisefit needs a causal LM")
    found: nn.Module = model
    return found


def decoder_of(causal_lm: Any) -> nn.Module:
    """The module below the head, whose first output is the last hidden state [B, S, H]."""
    decoder = getattr(causal_lm, str(getattr(causal_lm, "base_model_prefix", "")) or "model", None)
    if not isinstance(decoder, nn.Module) or decoder is causal_lm:
        raise ValueError(f"cannot find the decoder of {type(causal_lm).__name__}")
    return decoder


def decoder_layers(causal_lm: Any) -> list[nn.Module]:
    """The decoder layers, first to last.

    Raises:
        ValueError: they are at none of the places where transformers keeps them.
    """
    decoder = decoder_of(causal_lm)
    for owner in (
        decoder,
        getattr(decoder, "decoder", None),
        getattr(decoder, "language_model", None),
    ):
        for name in ("layers", "h"):
            layers = getattr(owner, name, None)
            if isinstance(layers, nn.ModuleList) and len(layers):
                return list(layers)
    raise ValueError(
        f"cannot find the decoder layers of {type(causal_lm).__name__}: neither `layers` nor `h` "
        f"on its {type(decoder).__name__}; noisefit cannot add noise to this model"
    )
