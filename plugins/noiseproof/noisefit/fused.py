"""Closed form of the v2 losses `full` and `ce_kl`: parts and gradient in a few passes over V.

The same mathematics as `loss.hybrid_parts` (a test compares them); autograd would make about three
times as many passes. Shapes: G branches (clean first), C positions, V vocabulary.
"""

import torch

from noiseproof.noisefit.loss import LossSpec


def applies(spec: LossSpec) -> bool:
    """Whether `parts_and_gradient` knows this loss."""
    return spec.name in ("full", "ce_kl") and not spec.v1


def parts_and_gradient(
    z_GCV: torch.Tensor,
    targets_C: torch.Tensor,
    ce_weight_C: torch.Tensor,
    kl_weight_C: torch.Tensor,
    spec: LossSpec,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(parts fp64 [3], d loss / d z fp32 [G, C, V]) with loss = spec.weights . parts.

    With p, q1, q2 the softmaxes at temperature T and n noisy branches (paper, hybrid loss):
    d/dz_i = T (soft / n) (q_i - p), plus T consistency (q1 - q2) for the first noisy branch;
    d/dz_clean = ce (softmax(z) - onehot). Teachers carry no gradient.
    """
    t = spec.temperature
    ce, soft, consistency = spec.weights
    noisy = len(z_GCV) - 1
    log_p = (z_GCV if t == 1 else z_GCV / t).log_softmax(-1)
    p = log_p.exp()
    clean = log_p[0] if t == 1 else z_GCV[0].log_softmax(-1)
    picked = clean.gather(-1, targets_C.unsqueeze(-1)).squeeze(-1)
    ce_sum = _weighted(-picked, ce_weight_C)
    kls = [_weighted(_kl(p[0], log_p[0], log_p[i]), kl_weight_C) for i in range(1, noisy + 1)]
    kl = torch.stack(kls).sum()
    zero = torch.zeros_like(ce_sum)
    between = _weighted(_kl(p[2], log_p[2], log_p[1]), kl_weight_C) if noisy == 2 else zero
    parts = torch.stack([ce_sum, kl * (t * t / noisy), between * (t * t)])

    gradient = torch.empty_like(z_GCV)
    kl_weight = kl_weight_C.unsqueeze(-1)
    for i in range(1, noisy + 1):
        torch.sub(p[i], p[0], out=gradient[i]).mul_(t * soft / noisy)
    if noisy == 2 and consistency:
        gradient[1].add_(p[1], alpha=t * consistency).sub_(p[2], alpha=t * consistency)
    gradient[1:].mul_(kl_weight)
    ce_weight = (ce_weight_C * ce).unsqueeze(-1)
    torch.mul(p[0] if t == 1 else clean.exp(), ce_weight, out=gradient[0])
    gradient[0].scatter_add_(-1, targets_C.unsqueeze(-1), -ce_weight)
    return parts, gradient


def _kl(p: torch.Tensor, log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    kl: torch.Tensor = torch.linalg.vecdot(p, log_p - log_q)
    return kl


def _weighted(values_C: torch.Tensor, weight_C: torch.Tensor) -> torch.Tensor:
    return (values_C * weight_C).sum(dtype=torch.float64)
