"""The output head in chunks at supervised positions: loss and gradients in the forward, no [B, T, V].

Shapes: G branches, N selected positions, H hidden size, V vocabulary, C chunk of N.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# logits [G, C, V] in fp32, first position and end of the chunk -> (loss of the chunk, its parts [P],
# the gradient by the logits where a closed form gave it, else None and autograd does it)
ChunkLoss = Callable[
    [torch.Tensor, int, int], tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
]


def selected_logits(causal_lm: Any, hidden_NH: torch.Tensor) -> torch.Tensor:
    """The model's own logits for some hidden states, [..., V] in fp32.

    The head module itself is called, so tied, biased, adapted and quantised heads are right;
    Granite divides by `logits_scaling`, Cohere multiplies by `logit_scale`, Gemma 2 soft-caps.
    """
    config = causal_lm.config
    logits = causal_lm.get_output_embeddings()(hidden_NH)
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (
        factor := getattr(causal_lm, "logit_scale", getattr(config, "logit_scale", None))
    ) is not None:
        logits = logits * factor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    fp32: torch.Tensor = logits.float()
    return fp32


class _ChunkedHead(torch.autograd.Function):
    """Runs the head and the loss chunk by chunk; keeps gradients of hidden states and head only."""

    @staticmethod
    def forward(
        ctx: Any, run: Callable[..., Any], hidden_GNH: torch.Tensor, *weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        loss, parts, grads = run(hidden_GNH, weights)
        ctx.save_for_backward(*grads)
        ctx.dtypes = [hidden_GNH.dtype, *(weight.dtype for weight in weights)]
        ctx.mark_non_differentiable(parts)
        return loss, parts

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        grads = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return (None, *((grad * upstream[0]).to(dtype) for grad, dtype in grads))


def chunked_head_loss(
    causal_lm: Any, hidden_GNH: torch.Tensor, loss_of: ChunkLoss, num_parts: int, chunk_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of `loss_of` over chunks of N, and its parts [num_parts]; gradients wait for backward.

    Chunk gradients are summed in fp32; sums of the loss in fp64. With N = 0 the loss is a zero
    that still depends on every parameter, so that DDP sees a gradient for each.
    """
    head: nn.Module = causal_lm.get_output_embeddings()
    weights = [weight for weight in head.parameters() if weight.requires_grad]

    def run(hidden: torch.Tensor, _: Any) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        total = hidden.new_zeros((), dtype=torch.float64)
        parts = hidden.new_zeros(num_parts, dtype=torch.float64)
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32)
        grad_weights = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
        for start in range(0, hidden.shape[1], chunk_size):
            end = min(start + chunk_size, hidden.shape[1])
            with torch.enable_grad():
                piece = hidden[:, start:end].detach().requires_grad_()
                logits = selected_logits(causal_lm, piece)
                loss, piece_parts, closed = loss_of(logits, start, end)
                source = loss if closed is None else logits
                grads = torch.autograd.grad(source, [piece, *weights], closed)
            grad_hidden[:, start:end] = grads[0]
            for sum_, grad in zip(grad_weights, grads[1:], strict=True):
                sum_ += grad
            total += loss.detach()
            parts += piece_parts.detach()
        return total.float(), parts, [grad_hidden, *grad_weights]

    apply: Any = _ChunkedHead.apply
    loss, parts = apply(run, hidden_GNH, *weights)
    return loss, parts
