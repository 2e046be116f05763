"""The policy file: what a calibration found, strict JSON, written once and read back."""

import json
import logging
import math
from pathlib import Path
from typing import Any

from noiseproof.noisefit.config import NoiseFitConfig
from noiseproof.noisefit.layers import Cell, Choice
from noiseproof.receipt import write_json

logger = logging.getLogger(__name__)
NAME = "noisefit_policy.json"
FORMAT, VERSION = "noiseproof.noisefit.policy", 1


def _settings(config: NoiseFitConfig) -> dict[str, Any]:
    return {
        **config.probing.model_dump(exclude={"policy_file"}),
        "num_noise_layers": config.num_noise_layers,
        "temperature": config.temperature,
        "seed": config.seed,
    }


def _model(causal_lm: Any, num_layers: int) -> dict[str, Any]:
    head = causal_lm.get_output_embeddings().weight
    return {
        "name": type(causal_lm).__name__,
        "num_layers": num_layers,
        "hidden_size": int(head.shape[-1]),
        "dtype": str(head.dtype).removeprefix("torch."),
    }


def content(
    causal_lm: Any,
    config: NoiseFitConfig,
    clean_ce: float,
    tokens: int,
    cells: list[list[Cell]],
    choice: Choice,
    scales: dict[int, float],
    joint: dict[str, float],
) -> dict[str, Any]:
    """The policy as a mapping; `scales` are final, after the joint check."""
    bound = config.probing.max_ce_delta_ratio
    root = math.sqrt(_model(causal_lm, 0)["hidden_size"])
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": _model(causal_lm, len(cells)),
        "data": {"batches": config.probing.batches, "supervised_tokens": tokens},
        "settings": _settings(config),
        "clean_ce": clean_ce,
        "score_median": choice.median,
        "score_mad": choice.mad,
        "target_kl": choice.target,
        "selected": [
            {"layer": i, "scale": scale, "factor": scale * root} for i, scale in scales.items()
        ],
        "joint": joint,
        "layers": [
            {
                "layer": i,
                "valid": any(cell.ce_ratio <= bound for cell in row),
                "grid": [
                    {"factor": c.factor, "kl": c.kl, "ce_delta_ratio": c.ce_ratio,
                     "score": c.score if c.ce_ratio <= bound else None}
                    for c in row
                ],
            }
            for i, row in enumerate(cells)
        ],
    }  # fmt: skip


def write(path: Path, data: dict[str, Any], trainer: Any) -> None:
    """Write it atomically, on rank 0 only."""
    if trainer.is_world_process_zero():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, data)


def read(path: Path, causal_lm: Any, config: NoiseFitConfig, num_layers: int) -> dict[int, float]:
    """Scales per layer.

    Raises:
        ValueError: it is no policy file, or one for another model.
    """

    def strict(name: str) -> Any:
        raise ValueError(f"{path.name}: holds {name}, which is not JSON; calibrate again")

    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=strict)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name}:{error.lineno}: {error.msg}; calibrate again") from None
    if not isinstance(data, dict) or (data.get("format"), data.get("version")) != (FORMAT, VERSION):
        raise ValueError(f"{path.name}: no policy file of this version; calibrate again")
    model = _model(causal_lm, num_layers)
    for key in ("num_layers", "hidden_size"):
        if data["model"][key] != model[key]:
            raise ValueError(
                f"{path.name}: made for {key} {data['model'][key]}, this model has {model[key]}; "
                "calibrate again or name another calibration.policy_file"
            )
    other = [k for k, v in _settings(config).items() if data["settings"].get(k) != v]
    other += [k for k in ("name", "dtype") if data["model"].get(k) != model[k]]
    if other:
        logger.warning("noiseproof: %s was made with other %s", path.name, ", ".join(other))
    scales = {int(row["layer"]): float(row["scale"]) for row in data["selected"]}
    if not scales or not all(0 <= i < num_layers and s > 0 for i, s in scales.items()):
        raise ValueError(f"{path.name}: its selected layers do not fit this model; calibrate again")
    return scales
