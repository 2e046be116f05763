"""Probe a model with noise before training: the layer choices `snr` and `auto`.

Eval mode, no gradients, own data loader; the trainer's random state is as before afterwards.
Shapes: B rows, S positions, H hidden size, N supervised positions, V vocabulary.
"""

import contextlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from noiseproof import draws, hooks
from noiseproof.functional import shift_labels
from noiseproof.head import selected_logits
from noiseproof.noisefit import noise, policy
from noiseproof.noisefit.config import NoiseFitConfig
from noiseproof.noisefit.layers import Cell, choose_layers, rank_by_snr

logger = logging.getLogger(__name__)
SNR_DRAWS = 10


@contextlib.contextmanager
def _quiet(causal_lm: Any) -> Iterator[None]:
    """Eval mode without gradients; mode and random state are put back."""
    training = causal_lm.training
    with torch.random.fork_rng(), torch.no_grad():
        causal_lm.eval()
        try:
            yield
        finally:
            causal_lm.train(training)


def _batches(trainer: Any, causal_lm: Any, count: int) -> list[dict[str, Any]]:
    """The first rows of this process's share of the training data, collated by the trainer."""
    data = trainer.train_dataset
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise ValueError(
            "noiseproof.noisefit.layers: streaming data cannot be probed before training; give a "
            "list of layers, or a calibration.policy_file of an earlier run"
        )
    size = trainer.args.per_device_train_batch_size
    world, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
    device = next(causal_lm.parameters()).device
    kept = ("input_ids", "attention_mask", "labels", "position_ids")
    found = []
    for batch in range(count):
        first = (batch * world + rank) * size
        rows = [data[i % len(data)] for i in range(first, first + size)]
        rows = [{k: v for k, v in row.items() if k in kept} for row in rows]
        collated = trainer.data_collator(rows)
        found.append({k: v.to(device) for k, v in collated.items() if k in kept})
    return found


def _forward(
    causal_lm: Any, batch: dict[str, Any], noised: dict[int, torch.Tensor]
) -> torch.Tensor:
    """The last hidden state with `noised[layer]` [B, S, H] added to layers' outputs."""
    handles = []
    layers = hooks.decoder_layers(causal_lm)
    for index, scaled in noised.items():

        def add(_m: Any, _a: Any, out: Any, scaled: torch.Tensor = scaled) -> Any:
            h = out[0] if isinstance(out, tuple) else out
            mask = batch.get("attention_mask")
            noisy = (h + noise.amplitude_v2(h, mask) * scaled).to(h.dtype)
            return (noisy, *out[1:]) if isinstance(out, tuple) else noisy

        handles.append(layers[index].register_forward_hook(add))
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    try:
        hidden: torch.Tensor = hooks.decoder_of(causal_lm)(**inputs, use_cache=False)[0]
    finally:
        for handle in handles:
            handle.remove()
    return hidden


def _compare(
    causal_lm: Any, clean_NV: torch.Tensor, hidden: torch.Tensor, batch: dict[str, Any], t: float
) -> torch.Tensor:
    """Sums over supervised positions: [symmetric KL * t^2, CE of the noisy logits]."""
    shift = shift_labels(batch["labels"])
    keep = shift != -100
    noisy = selected_logits(causal_lm, hidden[keep])
    p, q = (clean_NV / t).log_softmax(-1), (noisy / t).log_softmax(-1)
    kl = 0.5 * ((p.exp() - q.exp()) * (p - q)).sum(-1)
    ce = torch.nn.functional.cross_entropy(noisy, shift[keep], reduction="none")
    return torch.stack([kl.sum(dtype=torch.float64) * t * t, ce.sum(dtype=torch.float64)])


class Prober:
    """Sums of KL and CE over batches and ranks for any assignment of scales to layers."""

    def __init__(self, trainer: Any, causal_lm: Any, config: NoiseFitConfig) -> None:
        self.lm, self.config, self.accelerator = causal_lm, config, trainer.accelerator
        self.batches = _batches(trainer, causal_lm, config.probing.batches)
        self.clean, sums = [], torch.zeros(2, dtype=torch.float64)
        for batch in self.batches:
            hidden = _forward(causal_lm, batch, {})
            shift = shift_labels(batch["labels"])
            logits = selected_logits(causal_lm, hidden[shift != -100])
            self.clean.append(logits)
            sums = sums.to(logits.device) + _compare(causal_lm, logits, hidden, batch, 1.0)
        count = sum(int((shift_labels(b["labels"]) != -100).sum()) for b in self.batches)
        totals = self._reduce(torch.tensor([count, float(sums[1])], dtype=torch.float64))
        self.tokens = int(totals[0])
        if not self.tokens:
            raise ValueError(
                "noiseproof.noisefit: the rows to calibrate on have no supervised token; give a list "
                "of layers or raise calibration.batches"
            )
        self.clean_ce = float(totals[1]) / self.tokens

    def _reduce(self, values: torch.Tensor) -> torch.Tensor:
        moved = values.to(self.accelerator.device)
        return torch.as_tensor(self.accelerator.reduce(moved, reduction="sum")).cpu()

    def measure(self, scales: dict[int, float]) -> tuple[float, float]:
        """(KL, increase of CE over the clean loss as a share of it), means over draws and tokens."""
        sums = torch.zeros(2, dtype=torch.float64)
        count = self.config.probing.draws
        for index, batch in enumerate(self.batches):
            for draw in range(count):
                noised = {layer: self._gauss(layer, index, draw) * s for layer, s in scales.items()}
                hidden = _forward(self.lm, batch, noised)
                t = self.config.temperature
                sums = sums + _compare(self.lm, self.clean[index], hidden, batch, t).cpu()
        kl, ce = (self._reduce(sums) / (self.tokens * count)).tolist()
        return kl, max(0.0, ce - self.clean_ce) / abs(self.clean_ce)

    def _gauss(self, layer: int, batch: int, draw: int) -> torch.Tensor:
        ids = self.batches[batch]["input_ids"]
        hidden = hidden_size(self.lm)
        rank = self.accelerator.process_index
        keys = [
            draws.key(self.config.seed, rank, batch, draw, layer, row) for row in range(len(ids))
        ]
        return draws.normal_rows(keys, ids.shape[1], hidden, ids.device)


def hidden_size(causal_lm: Any) -> int:
    """H, the width of the head's input."""
    return int(causal_lm.get_output_embeddings().weight.shape[-1])


def snr_choice(trainer: Any, causal_lm: Any, config: NoiseFitConfig) -> list[int]:
    """The layers with the largest or lowest mean|h| / mean|delta| on one batch."""
    layers = hooks.decoder_layers(causal_lm)
    with _quiet(causal_lm):
        batch = _batches(trainer, causal_lm, 1)[0]
        outputs: list[torch.Tensor] = []
        handles = [
            layer.register_forward_hook(
                lambda _m, _a, out: outputs.append(out[0] if isinstance(out, tuple) else out)
            )
            for layer in layers
        ]
        last = _forward(causal_lm, batch, {})
        for handle in handles:
            handle.remove()
        if config.preset == "v1":
            outputs[-1] = (
                last  # the reference reads hidden_states[1:], whose last is after the norm
            )
        ratios = torch.tensor([_snr(i, h, batch, config) for i, h in enumerate(outputs)])
    ratios = torch.as_tensor(
        trainer.accelerator.reduce(ratios.to(trainer.accelerator.device), reduction="mean")
    )
    return rank_by_snr(ratios.tolist(), config.num_noise_layers or 3, config.snr_format)


def _snr(layer: int, h: torch.Tensor, batch: dict[str, Any], config: NoiseFitConfig) -> float:
    mask = batch.get("attention_mask")
    if config.preset == "v1":
        amplitude, keep = noise.amplitude_v1(h, config.std, power=1), torch.ones_like(h[..., 0])
    else:
        amplitude = noise.amplitude_v2(h, mask) * (config.scale / math.sqrt(h.shape[-1]))
        keep = torch.ones_like(h[..., 0]) if mask is None else mask.to(h.dtype)
    total = 0.0
    for draw in range(SNR_DRAWS):
        keys = [draws.key(config.seed, draw, layer, row) for row in range(len(h))]
        delta = draws.normal_rows(keys, h.shape[1], h.shape[2], h.device) * amplitude
        total += float((delta.abs().mean(-1) * keep).sum() / keep.sum())
    return float((h.float().abs().mean(-1) * keep).sum() / keep.sum()) / (total / SNR_DRAWS + 1e-6)


def auto_choice(
    trainer: Any, causal_lm: Any, config: NoiseFitConfig
) -> tuple[dict[int, float], dict[str, Any] | None]:
    """Scales per layer by calibration, or from the policy file when there is one."""
    path = Path(config.probing.policy_file or Path(trainer.args.output_dir) / policy.NAME)
    layers = len(hooks.decoder_layers(causal_lm))
    if path.exists() and (config.probing.policy_file or trainer.args.resume_from_checkpoint):
        return policy.read(path, causal_lm, config, layers), {"read": path.name}
    root = math.sqrt(hidden_size(causal_lm))
    with _quiet(causal_lm):
        prober = Prober(trainer, causal_lm, config)
        cells: list[list[Cell]] = []
        for layer in range(layers):
            cells.append([])
            for factor in config.probing.scale_factors:
                kl, ratio = prober.measure({layer: factor / root})
                cells[layer].append(Cell(factor, kl, ratio))
            logger.info("noiseproof: probed layer %d of %d", layer + 1, layers)
        choice = choose_layers(cells, config)
        chosen, joint = _joint(prober, choice.factors, choice.target, cells, config, root)
    data = policy.content(
        causal_lm, config, prober.clean_ce, prober.tokens, cells, choice, chosen, joint
    )
    policy.write(path, data, trainer)
    return chosen, {"written": path.name, "joint": joint}


def _joint(
    prober: Prober,
    factors: dict[int, float],
    target: float,
    cells: list[list[Cell]],
    config: NoiseFitConfig,
    root: float,
) -> tuple[dict[int, float], dict[str, float]]:
    """All chosen layers at once: shrink until together they keep the bounds, else drop the worst."""
    factors = dict(factors)
    while factors:
        scales = {layer: factor / root for layer, factor in factors.items()}
        bound, shrink = len(scales) * target, 1.0
        for turn in range(9):
            kl, ratio = prober.measure(scales)
            if ratio <= config.probing.max_ce_delta_ratio and kl <= bound:
                found = {"kl": kl, "ce_delta_ratio": ratio, "shrink": shrink, "rounds": turn}
                return scales, found
            # a hundredth below the bound, or the square law would reach it only in the limit
            step = (
                0.8 if ratio > config.probing.max_ce_delta_ratio else 0.99 * math.sqrt(bound / kl)
            )
            shrink *= step
            scales = {layer: scale * step for layer, scale in scales.items()}
        worst = max(
            factors, key=lambda i: max(c.ce_ratio for c in cells[i] if c.factor == factors[i])
        )
        del factors[worst]
    raise ValueError(
        "noiseproof.noisefit.layers: no scale of a single layer keeps calibration.max_ce_delta_ratio "
        f"{config.probing.max_ce_delta_ratio}; raise it or add smaller calibration.scale_factors"
    )
