"""The hybrid loss family of NoiseFiT on logits of the packed branches; pure functions.

Shapes: G branches (clean first, then noisy), C positions, V vocabulary. Every term is a sum over
positions; the caller's weights hold the denominators. KL(a, b) = sum_V a (log a - log b).
"""

from dataclasses import dataclass

import torch

PARTS = ("ce", "soft", "consistency")


@dataclass(frozen=True)
class LossSpec:
    """Which loss, its weights, and whether teachers are detached (v2) or attached (v1).

    loss = weights . (ce, soft, consistency), the parts as they are logged.
    """

    name: str
    weights: tuple[float, float, float]
    temperature: float = 1.0
    v1: bool = False


def hybrid_parts(
    logits_GCV: torch.Tensor,
    targets_C: torch.Tensor,
    ce_weight_C: torch.Tensor,
    kl_weight_C: torch.Tensor,
    spec: LossSpec,
) -> torch.Tensor:
    """The parts (ce, soft, consistency) of spec's loss summed over C, fp64 [3], with their graph.

    `targets_C` may hold anything where `ce_weight_C` is zero. Formulas: methods table of the paper
    as `noisefit/__init__.py` lists them; T^2 (v2, R-Drop) is inside the parts.
    """
    z = [logits.float() for logits in logits_GCV]
    t = spec.temperature
    zero = logits_GCV.new_zeros((), dtype=torch.float64)

    def ce(logits: torch.Tensor) -> torch.Tensor:
        picked = logits.log_softmax(-1).gather(-1, targets_C.unsqueeze(-1)).squeeze(-1)
        return _weighted(-picked, ce_weight_C)

    def kl(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        return _weighted((teacher.exp() * (teacher - student)).sum(-1), kl_weight_C)

    if spec.name == "ce_noisy":
        return torch.stack([ce(z[0]), zero, zero])
    if spec.name == "consistency_only":
        return torch.stack([zero, zero, kl(z[1].log_softmax(-1), z[0].log_softmax(-1))])
    if spec.name == "kl_only":
        return torch.stack([zero, kl((z[0] / t).log_softmax(-1), z[1].log_softmax(-1)), zero])
    if spec.name == "rdrop":
        a, b = ((x / t).log_softmax(-1) for x in z)
        return torch.stack([0.5 * (ce(z[0]) + ce(z[1])), zero, 0.5 * (kl(a, b) + kl(b, a)) * t**2])
    # full and ce_kl
    student_t, scale = (1.0, 1.0) if spec.v1 else (t, t * t)
    teacher = (z[0] / t).log_softmax(-1)
    if not spec.v1:
        teacher = teacher.detach()
    noisy = [(x / student_t).log_softmax(-1) for x in z[1:]]
    soft = sum((kl(teacher, student) for student in noisy), zero) * (scale / len(noisy))
    consistency = zero
    if len(noisy) == 2:
        second = noisy[1] if spec.v1 else noisy[1].detach()
        consistency = kl(second, noisy[0]) * scale
    return torch.stack([ce(z[0]), soft, consistency])


def _weighted(values_C: torch.Tensor, weight_C: torch.Tensor) -> torch.Tensor:
    # where, not a product: a masked position with an infinite value stays a zero with a graph
    kept = torch.where(weight_C != 0, values_C, torch.zeros_like(values_C)) * weight_C
    return kept.sum(dtype=torch.float64)
