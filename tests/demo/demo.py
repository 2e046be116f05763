"""make demo: a real small model, fine-tuned on facts of which a quarter is wrong, plain and with NoiseFiT.

The framework's own command runs recipes/noisefit/cpu_<framework>.yaml, once with an empty
`noiseproof: {}` block (the plain baseline) and once as it stands.
"""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
PARTS = {
    "loss_ce": "cross-entropy",
    "loss_soft": "soft (KL)",
    "loss_consistency": "consistency (KL)",
}
TRAIN = {"axolotl": ["axolotl", "train"], "llamafactory": ["llamafactory-cli", "train"]}


def train(framework, recipe, folder):
    """Run the framework's command; returns seconds and the log history."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    print(f"\ndemo: {' '.join(TRAIN[framework])} {path.relative_to(ROOT)}", flush=True)
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    start = time.time()
    code = subprocess.run([*TRAIN[framework], str(path)], cwd=ROOT, env=env, check=False).returncode
    if code:
        sys.exit(f"demo: training failed with exit code {code}; its last lines above say why")
    states = [
        folder / "trainer_state.json",
        *sorted(folder.glob("checkpoint-*/trainer_state.json")),
    ]
    state = json.loads(next(path for path in states if path.exists()).read_text())
    return time.time() - start, [line for line in state["log_history"] if "loss" in line]


def accuracy(model_path, adapter, rows):
    """Share of held-out questions whose greedy answer begins with, or says, the right word."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path, padding_side="left")
    tokenizer.pad_token = "<|im_end|>"  # the GGUF file names none
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    right = 0
    for first in range(0, len(rows), 25):
        part = rows[first : first + 25]
        text = [f"<|im_start|>user\n{r['prompt']}<|im_end|>\n<|im_start|>assistant\n" for r in part]
        batch = tokenizer(text, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.no_grad():
            out = model.generate(
                **batch, max_new_tokens=12, do_sample=False, eos_token_id=end, pad_token_id=end
            )
        for row, ids in zip(part, out[:, batch["input_ids"].shape[1] :], strict=True):
            words = tokenizer.decode(ids, skip_special_tokens=True).replace(".", " ").split()
            right += row["response"].lower() in [word.strip(",!\"'").lower() for word in words]
    return right / len(rows)


def plot(history, path):
    """The parts of the loss over steps, one panel each, since their sizes differ."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 1, sharex=True, figsize=(7, 7), constrained_layout=True)
    steps = [line["step"] for line in history]
    for axis, (key, label) in zip(axes, PARTS.items(), strict=True):
        axis.plot(steps, [line[f"noiseproof/{key}"] for line in history], color="#1f4e79")
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].set_title("NoiseFiT on SmolLM2-135M-Instruct: parts of the loss")
    axes[-1].set_xlabel("optimizer step")
    figure.savefig(path, dpi=110)


def main():
    """Run the demo for one framework."""
    framework = sys.argv[1] if len(sys.argv) > 1 else "llamafactory"
    if framework not in TRAIN:
        sys.exit(f"demo: FRAMEWORK is {framework}; use llamafactory or axolotl")
    sys.path.insert(0, str(Path(__file__).parent))
    from model import fetch

    from noiseproof_converters.convert import convert

    os.chdir(ROOT)
    base = fetch(ROOT / ".cache" / "models")
    out = ROOT / "runs" / f"demo-{framework}"
    print(convert(ROOT / "tests/demo/facts.csv", out / "data", "facts"), flush=True)
    recipe = yaml.safe_load((ROOT / f"recipes/noisefit/cpu_{framework}.yaml").read_text())
    heldout = list(csv.DictReader((ROOT / "tests/demo/heldout.csv").open(encoding="utf-8")))
    plain = out / "plain"
    plain_s, plain_log = train(
        framework, recipe | {"noiseproof": {}, "output_dir": str(plain.relative_to(ROOT))}, plain
    )
    noisefit_s, log = train(framework, recipe, out / "noisefit")
    plot(log, out / "loss_parts.png")
    print("\ndemo: asking the held-out questions", flush=True)
    scores = [accuracy(base, a, heldout) for a in (None, plain, out / "noisefit")]
    last = log[-10:]
    means = {key: sum(line[f"noiseproof/{key}"] for line in last) / len(last) for key in PARTS}
    ce = sum(line["loss"] for line in plain_log[-10:]) / len(plain_log[-10:])
    print(f"\n{'':14}{'CE':>8}{'soft':>9}{'consist.':>10}{'held-out':>10}{'seconds':>9}")
    print(f"{'untrained':14}{'-':>8}{'-':>9}{'-':>10}{scores[0]:>10.1%}{'-':>9}")
    print(f"{'plain':14}{ce:>8.3f}{'-':>9}{'-':>10}{scores[1]:>10.1%}{plain_s:>9.0f}")
    parts = f"{means['loss_ce']:>8.3f}{means['loss_soft']:>9.4f}{means['loss_consistency']:>10.4f}"
    print(f"{'noisefit':14}{parts}{scores[2]:>10.1%}{noisefit_s:>9.0f}")
    print(
        f"Losses are means of the last 10 of {len(log)} steps; {len(heldout)} held-out questions, one "
        "seed: a difference of a few points is chance."
    )
    print(f"Picture: {(out / 'loss_parts.png').relative_to(ROOT)}")


if __name__ == "__main__":
    main()
