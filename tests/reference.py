"""Naive float64 references, written from the papers by loops; slow on purpose."""

import math

import torch


def noisefit_delta(h_SH, gauss_SH, scale, mask_S=None, mean_var=None):
    """NoiseFiT's noise of one row, token by token and with sorted lists for the medians."""
    eps, beta = 1e-6, 0.1
    rows = [[float(x) for x in row] for row in h_SH]
    size = len(rows[0])
    variances = []
    for row in rows:
        mean = sum(row) / size
        variances.append(sum((x - mean) ** 2 for x in row) / (size - 1))
    if mean_var is None:
        kept = [v for i, v in enumerate(variances) if mask_S is None or bool(mask_S[i])]
        mean_var = sum(kept) / len(kept)
    out = torch.zeros(len(rows), size, dtype=torch.float64)
    for t, row in enumerate(rows):
        factor = min(math.exp(variances[t] / (mean_var + eps)), 5.0)
        median = sorted(row)[(size - 1) // 2]
        dev = [abs(x - median) for x in row]
        norm = math.sqrt(sum(x * x for x in row))
        mad = max(sorted(dev)[(size - 1) // 2], eps * norm)
        for i in range(size):
            weight = math.exp(-beta * dev[i] / (mad + eps))
            out[t, i] = float(gauss_SH[t, i]) * scale * mad * weight * factor
    return out


def kl(a_logits, b_logits):
    """KL(softmax(a) || softmax(b)) of two logit vectors, float64 with graph."""
    a, b = a_logits.double(), b_logits.double()
    p = torch.exp(a - torch.logsumexp(a, -1))
    return (p * ((a - torch.logsumexp(a, -1)) - (b - torch.logsumexp(b, -1)))).sum()


def ce(logits, target):
    """Cross-entropy of one position, float64."""
    z = logits.double()
    return torch.logsumexp(z, -1) - z[target]


def noisefit_loss(branches, labels_BS, name, alpha=0.5, lam=0.05, t=1.0, r_alpha=1.0, v1=False):
    """The hybrid loss position by position; `branches` are full logits [B, S, V], clean first."""
    ce_at, kl_at = [], []
    for b in range(labels_BS.shape[0]):
        for s in range(labels_BS.shape[1]):
            if s + 1 < labels_BS.shape[1] and labels_BS[b, s + 1] != -100:
                ce_at.append((b, s, int(labels_BS[b, s + 1])))
                if not v1:
                    kl_at.append((b, s))
            if v1 and labels_BS[b, s] != -100:
                kl_at.append((b, s))

    def mean(terms):
        return sum(terms) / max(len(terms), 1)

    def ce_of(z):
        return mean([ce(z[b, s], y) for b, s, y in ce_at])

    def kl_of(p, q, tp=1.0, tq=1.0):
        return mean([kl(p[b, s] / tp, q[b, s] / tq) for b, s in kl_at])

    if name == "full":
        z, z1, z2 = branches
        if v1:
            soft = 0.5 * (kl_of(z, z1, t) + kl_of(z, z2, t))
            return alpha * ce_of(z) + (1 - alpha) * soft + lam * kl_of(z2, z1)
        soft = 0.5 * (kl_of(z.detach(), z1, t, t) + kl_of(z.detach(), z2, t, t)) * t * t
        consistency = kl_of(z2.detach(), z1, t, t) * t * t
        return alpha * ce_of(z) + (1 - alpha) * soft + lam * consistency
    if name == "ce_kl":
        z, z1 = branches
        return alpha * ce_of(z) + (1 - alpha) * t * t * kl_of(z.detach(), z1, t, t)
    if name == "ce_noisy":
        return ce_of(branches[0])
    if name == "kl_only":
        return kl_of(branches[0], branches[1], t)
    if name == "consistency_only":
        return kl_of(branches[1], branches[0])
    if name == "rdrop":
        a, b = branches
        sym = 0.5 * (kl_of(a, b, t, t) + kl_of(b, a, t, t))
        return 0.5 * (ce_of(a) + ce_of(b)) + r_alpha * sym * t * t
    raise ValueError(name)
