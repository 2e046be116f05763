"""Tiny random models of the families that noisefit supports."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

BASE = dict(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, head_dim=8,
)  # fmt: skip
_GPT2 = dict(vocab_size=61, n_embd=32, n_layer=4, n_head=4, n_positions=64, pad_token_id=0,
             bos_token_id=1, eos_token_id=2, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)  # fmt: skip
MODELS = {
    "llama": BASE | {"tie_word_embeddings": True},
    "qwen2": BASE,
    "qwen3": BASE,
    "gemma2": BASE
    | {"query_pre_attn_scalar": 8, "sliding_window": 6, "final_logit_softcapping": 3.0},
    "gemma3_text": BASE | {"query_pre_attn_scalar": 8, "sliding_window": 6},
    "mistral": BASE | {"sliding_window": 6},
    "phi3": BASE | {"sliding_window": 6},
    "gpt2": _GPT2,
    "gpt_neox": BASE | {"hidden_dropout": 0.0, "attention_dropout": 0.0},
    "granite": BASE | {"logits_scaling": 4.0, "residual_multiplier": 0.5},
    "cohere": BASE | {"logit_scale": 0.25},
    "falcon": {k: v for k, v in BASE.items() if k != "head_dim"}
    | {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False},
    "phi": BASE,
    "mixtral": BASE | {"num_local_experts": 4, "output_router_logits": True},
}


def build(name, attention="sdpa", seed=0):
    """A model in fp32, weights larger than the default so that noise and attention matter."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(name, **MODELS[name])
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    return model.float()


def batch(rows=3, length=12, vocab=61, seed=1):
    """Right-padded rows with unevenly spread supervision; the second row is the shortest."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocab, (rows, length), generator=g)
    mask = torch.ones_like(ids)
    labels = ids.clone()
    for i in range(rows):
        labels[i, : 3 + i] = -100
    if rows > 1:
        mask[1, length - 4 :] = 0
        ids[1, length - 4 :] = 0
        labels[1, length - 4 :] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
