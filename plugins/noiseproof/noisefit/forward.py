"""The CausalLM's forward for a training step: packed branches through the decoder, then the loss.

Shapes: B rows, S positions, G branches, N positions that count, H hidden size.
"""

import functools
import inspect
import sys
from typing import Any

import torch

from noiseproof.functional import shift_labels
from noiseproof.head import chunked_head_loss
from noiseproof.hooks import decoder_of
from noiseproof.noisefit import fused
from noiseproof.noisefit.loss import PARTS, LossSpec, hybrid_parts
from noiseproof.noisefit.packed import EMBEDDING, Packed

_OF_THE_HEAD = {"labels", "shift_labels", "num_items_in_batch", "logits_to_keep", "skip_logits"}


class PackedForward:
    """Replaces `forward` on one CausalLM instance; acts only while armed and in training."""

    def __init__(self, causal_lm: Any, state: Packed, spec: LossSpec, chunk_size: int) -> None:
        self.causal_lm, self.state, self.spec, self.chunk_size = causal_lm, state, spec, chunk_size
        self.armed = False
        self.parts: torch.Tensor | None = None  # of the last step, fp64 [3]
        self.total: torch.Tensor | None = None
        self.original = causal_lm.forward
        self._names = list(inspect.signature(self.original).parameters)
        parameters = inspect.signature(decoder_of(causal_lm).forward).parameters.values()
        self._open = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._accepted = {p.name for p in parameters}

    def install(self) -> None:
        """Put the patched forward on the instance, with the original's signature."""

        @functools.wraps(self.original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            self.state.active = False
            armed = self.armed and self.causal_lm.training
            if not armed or (kwargs.get("labels") is None and kwargs.get("shift_labels") is None):
                return self.original(*args, **kwargs)
            return self._train_forward(dict(zip(self._names, args, strict=False)) | kwargs)

        self.causal_lm.forward = forward

    def remove(self) -> None:
        """Give the instance its own forward back."""
        self.state.active = False
        self.causal_lm.__dict__.pop("forward", None)
        if self.causal_lm.forward != self.original:  # the instance had been patched before us
            self.causal_lm.forward = self.original

    def _train_forward(self, inputs: dict[str, Any]) -> Any:
        from transformers.modeling_outputs import CausalLMOutputWithPast

        shift, labels = inputs.get("shift_labels"), inputs.get("labels")
        if shift is None:
            assert labels is not None
            shift = shift_labels(labels)
        hidden, outputs = self._decode(inputs, shift.shape)
        loss, self.parts = self._loss(hidden, shift, labels, inputs.get("num_items_in_batch"))
        self.total = loss.detach()
        return CausalLMOutputWithPast(loss=loss + self._router_loss(inputs, outputs), logits=None)

    def _decode(self, inputs: dict[str, Any], shape: torch.Size) -> tuple[torch.Tensor, Any]:
        passed = {
            name: value
            for name, value in inputs.items()
            if name not in _OF_THE_HEAD and (self._open or name in self._accepted)
        }
        passed |= {"use_cache": False, "return_dict": True}
        passed.pop("output_hidden_states", None)
        passed.pop("output_attentions", None)
        mask = inputs.get("attention_mask")
        mask = (mask != 0) if isinstance(mask, torch.Tensor) and mask.shape == shape else None
        self.state.start(shape[0], mask)
        if self.state.first == EMBEDDING:
            groups = self.state.groups
            passed = {
                name: torch.cat([value] * groups)
                if isinstance(value, torch.Tensor) and value.dim() >= 2 and len(value) == shape[0]
                else value
                for name, value in passed.items()
            }
        if self._routed(inputs):
            passed["output_router_logits"] = True
        outputs = decoder_of(self.causal_lm)(**passed)
        hidden = outputs[0]
        return hidden.view(self.state.groups, shape[0], *hidden.shape[1:]), outputs

    def _loss(
        self, hidden_GBSH: torch.Tensor, shift: torch.Tensor, labels: Any, items: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ce_mask = shift != -100
        # the reference's first version forgot to shift its KL mask; preset v1 keeps that
        kl_mask = (labels != -100) if self.spec.v1 and labels is not None else ce_mask
        where = (ce_mask | kl_mask).flatten().nonzero().squeeze(-1)
        ce_kept, kl_kept = ce_mask.flatten()[where].float(), kl_mask.flatten()[where].float()
        ce_items = items if items is not None else ce_kept.sum().clamp(min=1)
        kl_items = ce_items
        if self.spec.v1:  # the micro-batch's own mean, weighed by its share of the whole batch
            kl_items = kl_kept.sum().clamp(min=1) * (ce_items / ce_kept.sum().clamp(min=1))
        ce_weight, kl_weight = ce_kept / ce_items, kl_kept / kl_items
        targets = shift.flatten()[where].clamp(min=0)
        hidden_GNH = hidden_GBSH.flatten(1, 2)[:, where]
        weights = torch.tensor(self.spec.weights, dtype=torch.float64, device=hidden_GBSH.device)

        def loss_of(logits: torch.Tensor, i: int, j: int) -> Any:
            given = (targets[i:j], ce_weight[i:j], kl_weight[i:j], self.spec)
            if fused.applies(self.spec):
                parts, gradient = fused.parts_and_gradient(logits.detach(), *given)
                return (weights * parts).sum(), parts, gradient
            parts = hybrid_parts(logits, *given)
            return (weights * parts).sum(), parts, None

        return chunked_head_loss(self.causal_lm, hidden_GNH, loss_of, len(PARTS), self.chunk_size)

    def _routed(self, inputs: dict[str, Any]) -> bool:
        asked = inputs.get("output_router_logits")
        wanted = getattr(self.causal_lm.config, "output_router_logits", False)
        return bool(wanted if asked is None else asked)

    def _router_loss(self, inputs: dict[str, Any], outputs: Any) -> Any:
        """A mixture-of-experts model's auxiliary loss on the clean rows, which come first."""
        if not self._routed(inputs):
            return 0.0
        module = sys.modules[type(self.causal_lm).__module__]
        mask = inputs.get("attention_mask")
        first: Any = inputs.get("input_ids", inputs.get("inputs_embeds"))
        tokens = first.shape[0] * first.shape[1]
        logits = tuple(
            layer.reshape(-1, layer.shape[-1])[:tokens] for layer in outputs.router_logits
        )
        lm: Any = self.causal_lm
        aux = module.load_balancing_loss_func(logits, lm.num_experts, lm.num_experts_per_tok, mask)
        return lm.router_aux_loss_coef * aux


def check_head(causal_lm: Any) -> None:
    """Refuse a model whose logits this package would not reproduce, before a step is spent."""
    from noiseproof.head import selected_logits

    was_training = causal_lm.training
    device = next(causal_lm.parameters()).device
    ids = torch.arange(4, device=device).unsqueeze(0)
    causal_lm.eval()
    try:
        with torch.no_grad():
            theirs = causal_lm(input_ids=ids, use_cache=False).logits.float()
            ours = selected_logits(
                causal_lm, decoder_of(causal_lm)(input_ids=ids, use_cache=False)[0]
            )
    finally:
        causal_lm.train(was_training)
    if not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2 * float(theirs.abs().max()) + 1e-6):
        raise ValueError(
            f"{type(causal_lm).__name__} treats its logits in a way that noisefit does not know "
            "(beyond scaling and soft-capping); its loss would be wrong, so it is refused"
        )
