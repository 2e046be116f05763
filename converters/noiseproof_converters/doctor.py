"""`noiseproof doctor`: what is installed and active, and whether a recipe will do what it says."""

import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from noiseproof.block import Recipe
from noiseproof.config import check

_TESTED = {"axolotl": "0.19.", "llamafactory": "0.9.5"}
_PACKAGES = ("torch", "torchaudio", "transformers", "accelerate", "peft", "trl", *_TESTED)


def examine(target: Path | None) -> tuple[list[str], bool]:
    """The lines to print, and whether everything is as it should be."""
    lines = _environment()
    if target is None:
        return lines, True
    if not target.exists():
        raise ValueError(f"{target}: no such recipe or output folder")
    more, sound = _output(target) if target.is_dir() else _recipe(target)
    return [*lines, "", *more], sound


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _environment() -> list[str]:
    lines = [f"noiseproof {_version('noiseproof')}, Python {sys.version.split()[0]}"]
    for name in _PACKAGES:
        version = _version(name)
        if version is None:
            continue
        note = ""
        if name in _TESTED and not version.startswith(_TESTED[name]):
            note = f"  (tested: {_TESTED[name]}; a `noiseproof:` block may be refused)"
        if name == "torchaudio" and version.endswith(".stub"):
            note = "  (a stand-in for CPU tests; install the real one on a GPU machine)"
        lines.append(f"{name} {version}{note}")
    off = [name for name, value in (("NOISEPROOF_DISABLE", "1"), ("TORCH_DEVICE_BACKEND_AUTOLOAD", "0"))
           if os.environ.get(name) == value]  # fmt: skip
    hooked = any(e.name == "noiseproof" for e in metadata.entry_points(group="torch.backends"))
    if off:
        lines.append(f"autoload: off, because {off[0]} is set; LLaMA-Factory will refuse the block")
    else:
        lines.append("autoload: on" if hooked else "autoload: missing; reinstall noiseproof")
    if os.environ.get("ALLOW_EXTRA_ARGS", "").lower() in ("1", "true", "y"):
        lines.append("ALLOW_EXTRA_ARGS is set: LLaMA-Factory would ignore our block without a word "
                     "when the autoload is off; unset it")  # fmt: skip
    return lines


def _recipe(path: Path) -> tuple[list[str], bool]:
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise ValueError(f"{path.name}:{line}: not valid YAML; mend it there") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"{path.name}:1: a recipe is a mapping of keys")
    framework = "axolotl" if "base_model" in recipe else "llamafactory"
    if framework == "llamafactory" and "model_name_or_path" not in recipe:
        raise ValueError(f"{path.name}: neither `base_model` (Axolotl) nor `model_name_or_path` "
                         "(LLaMA-Factory); is it a recipe?")  # fmt: skip
    stage = _stage(recipe, framework)
    lines = [f"{path.name}: a recipe for {framework}, stage {stage}"]
    lines += [f"note: {text}" for text in _silent_defects(recipe, framework, stage)]
    if recipe.get("noiseproof") is None and "noiseproof" not in recipe:
        return [*lines, "no `noiseproof:` block: this run is the framework's own"], True
    try:
        settings = {key: value for key, value in recipe.items() if key != "noiseproof"}
        around = Recipe(framework=framework, stage=stage, settings=settings)
        config = check(recipe["noiseproof"], around)
    except ValueError as error:
        return [*lines, *(f"refused: {text}" for text in str(error).splitlines())], False
    if framework == "axolotl" and not any("noiseproof" in p for p in recipe.get("plugins") or []):
        lines.append(
            "note: no `plugins: [noiseproof.axolotl.NoiseproofPlugin]`; the block enables it"
        )
    enabled = dict(config.enabled())
    for name, block in enabled.items():
        lines.append(f"on: {name} {json.dumps(config.resolved()[name])}")
        lines += [f"warning: {text}" for text in block.warnings(around)]
    if not enabled:
        lines.append("on: nothing but seed, receipt and NaN guard (a plain baseline)")
    return lines, True


def _stage(recipe: dict[str, Any], framework: str) -> str:
    if framework == "llamafactory":
        return str(recipe.get("stage", "sft"))
    return "reward_model" if recipe.get("reward_model") else str(recipe.get("rl") or "sft")


def _silent_defects(recipe: dict[str, Any], framework: str, stage: str) -> list[str]:
    """Settings that the framework takes and then does not act on."""
    found = []
    if framework == "axolotl" and stage == "dpo" and recipe.get("dpo_label_smoothing"):
        found.append("`dpo_label_smoothing` does nothing under Axolotl's default sigmoid loss")
    if framework == "llamafactory" and recipe.get("pref_loss") in ("hinge", "ipo", "kto_pair"):
        found.append(f"`pref_loss: {recipe['pref_loss']}` trains the plain sigmoid loss in 0.9.5")
    return found


def _output(folder: Path) -> tuple[list[str], bool]:
    path = folder / "noiseproof.json"
    if not path.exists():
        return [
            f"{folder.name}: no noiseproof.json, so noiseproof was not active in this run"
        ], False
    receipt = json.loads(path.read_text(encoding="utf-8"))
    lines = [f"{folder.name}: noiseproof {receipt['noiseproof']}, {receipt['status']}, "
             f"step {receipt['steps']}, {json.dumps(receipt['config'])}"]  # fmt: skip
    steps = [f for f in folder.glob("checkpoint-*") if f.name.split("-")[1].isdigit()]
    for checkpoint in sorted(steps, key=lambda f: int(f.name.split("-")[1]), reverse=True):
        fault = _fault(checkpoint)
        if fault is None:
            return [*lines, f"newest complete checkpoint: {checkpoint.name}"], True
        lines.append(f"{checkpoint.name}: {fault}; do not resume from it")
    return [*lines, "no complete checkpoint"], not steps


def _fault(checkpoint: Path) -> str | None:
    """The first file that a resume would stumble over."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return "trainer_state.json is missing or torn"
    for name in ("optimizer.pt", "scheduler.pt"):
        if not (checkpoint / name).exists():
            return f"{name} is missing"
    if not list(checkpoint.glob("rng_state*.pth")):
        return "rng_state.pth is missing"
    weights = list(checkpoint.glob("*.safetensors"))
    for file in weights:
        with file.open("rb") as data:
            size = int.from_bytes(data.read(8), "little")
            try:
                header = json.loads(data.read(size)) if size < 2**27 else None
            except ValueError:
                header = None
        if header is None:
            return f"{file.name} has a broken header"
        end = max(
            (v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"), default=0
        )
        if file.stat().st_size != 8 + size + end:
            return f"{file.name} is cut short"
    return None if weights else "no weights"
