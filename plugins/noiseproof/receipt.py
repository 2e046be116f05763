"""noiseproof.json in the output folder: what was on, with which versions, keys, seeds and data."""

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import noiseproof

NAME = "noiseproof.json"
_PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "trl",
    "datasets",
    "axolotl",
    "llamafactory",
)


def write(trainer: Any, status: str) -> None:
    """Write the receipt atomically, on rank 0 only; it holds no absolute path."""
    if not trainer.is_world_process_zero():
        return
    folder = Path(trainer.args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / NAME, content(trainer, status))


def content(trainer: Any, status: str) -> dict[str, Any]:
    """The receipt as a mapping."""
    args = trainer.args
    return {
        "format": "noiseproof.receipt",
        "version": 1,
        "status": status,
        "noiseproof": noiseproof.__version__,
        "versions": {"python": platform.python_version()} | _versions(),
        "config": trainer.noiseproof.resolved(),
        "trainer": type(trainer).__name__,
        "seed": args.seed,
        "processes": trainer.accelerator.num_processes,
        "steps": trainer.state.global_step,
        "data": {
            name: {
                "rows": len(data) if hasattr(data, "__len__") else None,
                "fingerprint": getattr(data, "_fingerprint", None),
            }
            for name in ("train_dataset", "eval_dataset")
            if (data := getattr(trainer, name, None)) is not None
        },
        "found": trainer.noiseproof_found,
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_json(path: Path, data: Any) -> None:
    """Strict JSON, complete or not there at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=2, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
