"""Choose layers and scales from probes; pure (section "auto" of NoiseFiT's second release, mended).

Where it departs from the authors' code: a layer without a valid scale is excluded, the cap drops
the lowest scores and not the last depth band, and the scale is the smallest that reaches the target.
"""

import math
from dataclasses import dataclass

from noiseproof.noisefit.config import NoiseFitConfig


@dataclass(frozen=True)
class Cell:
    """One layer at one scale: symmetric KL and the rise of the clean loss as a share of it."""

    factor: float
    kl: float
    ce_ratio: float

    @property
    def score(self) -> float:
        """KL per damage, a little less for scales far from 1/sqrt(H)."""
        return self.kl / (1 + self.ce_ratio) / (1 + 0.05 * math.log2(self.factor) ** 2)


@dataclass(frozen=True)
class Choice:
    """Chosen layers with their factors, the target KL, and the statistics behind them."""

    factors: dict[int, float]
    target: float
    median: float
    mad: float


def lower_median(values: list[float]) -> float:
    """The lower of the two middle values."""
    return sorted(values)[(len(values) - 1) // 2]


def rank_by_snr(ratios: list[float], count: int, which: str) -> list[int]:
    """Indices of the `count` largest or lowest ratios, ascending; ties go to the earlier layer.

    Raises:
        ValueError: there are fewer layers than that.
    """
    if count > len(ratios):
        raise ValueError(
            f"noiseproof.noisefit.num_noise_layers: {count} is more than this model's {len(ratios)} layers"
        )
    sign = -1 if which == "largest" else 1
    return sorted(sorted(range(len(ratios)), key=lambda i: (sign * ratios[i], i))[:count])


def by_depth(best: dict[int, float], num_layers: int, cap: int, bands: int) -> list[int]:
    """At most `cap` of the candidates, spread over depth bands; `best` maps layer -> score."""
    count = min(bands, num_layers, cap)
    chosen: list[int] = []
    kept: set[int] = set()
    for band in range(count):
        first, end = band * num_layers // count, (band + 1) * num_layers // count
        inside = sorted((i for i in best if first <= i < end), key=lambda i: (-best[i], i))
        chosen += inside[: -(-cap // count)]
        kept |= set(inside[:1])
    while len(chosen) > cap:
        chosen.remove(min((i for i in chosen if i not in kept), key=lambda i: (best[i], -i)))
    rest = sorted((i for i in best if i not in chosen), key=lambda i: (-best[i], i))
    return sorted(chosen + rest[: cap - len(chosen)])


def choose_layers(cells: list[list[Cell]], config: NoiseFitConfig) -> Choice:
    """From `cells[layer][scale]` to layers and factors.

    Raises:
        ValueError: every scale of every layer damages the model too much.
    """
    bound = config.probing.max_ce_delta_ratio
    valid = {i: [c for c in row if c.ce_ratio <= bound] for i, row in enumerate(cells)}
    top = {i: max(row, key=lambda c: c.score) for i, row in valid.items() if row}
    if not top:
        raise ValueError(
            "noiseproof.noisefit.layers: every layer raises the loss by more than "
            f"calibration.max_ce_delta_ratio {bound} at every scale; raise it or add smaller "
            "calibration.scale_factors"
        )
    best = {i: cell.score for i, cell in top.items()}
    median = lower_median(list(best.values()))
    mad = max(lower_median([abs(b - median) for b in best.values()]), 1e-12)
    good = {i: b for i, b in best.items() if b >= median + mad and b > 0}
    if not good:
        first = max(best, key=lambda i: (best[i], -i))
        good = {first: best[first]}
    cap = config.num_noise_layers or math.ceil(math.sqrt(len(cells)))
    chosen = by_depth(good, len(cells), cap, config.probing.depth_bands)
    middle = lower_median([top[i].kl for i in chosen])
    target = max(config.probing.target_kl_fraction * middle, 1e-12)
    return Choice({i: _factor(valid[i], target) for i in chosen}, target, median, mad)


def _factor(valid: list[Cell], target: float) -> float:
    """The smallest valid factor that reaches the target, else the one nearest to it in log KL."""
    enough = [cell.factor for cell in valid if cell.kl >= target]
    if enough:
        return min(enough)
    return min(valid, key=lambda c: abs(math.log(max(c.kl, 1e-30)) - math.log(target))).factor
