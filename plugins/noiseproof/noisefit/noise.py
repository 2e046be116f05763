"""Adaptive noise of NoiseFiT (arXiv 2504.03302); pure functions.

Shapes: R rows, S positions, H hidden size. Statistics over H and in fp32: in fp16 they overflow.
"""

import torch

EPS = 1e-6
BETA = 0.1
FACTOR_MAX = 5.0


def robust_amplitude(
    h_RSH: torch.Tensor, mean_var: torch.Tensor, var_RS1: torch.Tensor
) -> torch.Tensor:
    """MAD * w * f: the amplitude of the noise per element, [R, S, H].

    MAD is the lower median of |h - median|, at least eps * ||h||; w = exp(-beta |h - med| / MAD)
    spares outlier channels; f = min(exp(var / mean_var), 5) follows the token's own variance.
    """
    factor = torch.exp(var_RS1 / (mean_var + EPS)).clamp(max=FACTOR_MAX)
    deviation = (h_RSH - h_RSH.median(dim=-1, keepdim=True).values).abs()
    mad = deviation.median(dim=-1, keepdim=True).values
    mad = torch.maximum(mad, EPS * h_RSH.norm(dim=-1, keepdim=True))
    return torch.exp(deviation * (-BETA / (mad + EPS))) * (mad * factor)


def row_mean(x_RS1: torch.Tensor, mask_RS: torch.Tensor | None) -> torch.Tensor:
    """Mean over each row's real tokens, [R, 1, 1]."""
    if mask_RS is None:
        return x_RS1.mean(dim=1, keepdim=True)
    weight = mask_RS.to(x_RS1.dtype).unsqueeze(-1)
    return (x_RS1 * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)


def amplitude_v2(h_RSH: torch.Tensor, mask_RS: torch.Tensor | None) -> torch.Tensor:
    """Amplitude under preset v2, to be multiplied by the layer's relative scale.

    mean(v) is taken over the row's own tokens, not over its batch mates as in the authors' code:
    the noise of a row then does not depend on how rows were batched, which accumulation and
    several processes need. For a batch of one row both are the same.
    """
    h = h_RSH.float()
    var = h.var(dim=-1, keepdim=True)
    return robust_amplitude(h, row_mean(var, mask_RS), var)


def amplitude_v1(h_RSH: torch.Tensor, noise_std: float, power: int = 2) -> torch.Tensor:
    """Amplitude under preset v1 with its scale noise_std^power * std(h) (squared in the reference).

    All rows are one branch; padding counts. The gradient flows through MAD, w and f, not std(h).
    """
    h = h_RSH.float()
    var = h.var(dim=-1, keepdim=True)
    scale = h.detach().std() * noise_std**power
    return robust_amplitude(h, var.mean(), var) * scale


@torch.no_grad()
def adaptive_noise(
    h_RSH: torch.Tensor, gauss_RSH: torch.Tensor, scale: float, mask_RS: torch.Tensor | None
) -> torch.Tensor:
    """The v2 delta in fp32, [R, S, H]; `scale` is noise_scale / sqrt(H) or the calibrated value."""
    return amplitude_v2(h_RSH, mask_RS) * gauss_RSH * scale
