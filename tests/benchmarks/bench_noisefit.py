"""NoiseFiT step against a plain step and a naive three-forward step, side by side in one process.

    make bench NAME=noisefit

Real SmolLM2-135M shape and weights when the demo has fetched them, the same shape at random
otherwise. Batch 4 x 128, half of the positions supervised, forward + backward, full fine-tuning,
fp32, one thread; process CPU time, median of --rounds interleaved rounds; peak resident memory
above the weights, sampled. Last lines: `NAME ratio=... goal<=... ok|short`.
"""

import argparse
import ctypes
import gc
import resource
import statistics
import sys
import threading
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from noiseproof import hooks
from noiseproof.noisefit import noise
from noiseproof.noisefit.forward import PackedForward
from noiseproof.noisefit.loss import LossSpec
from noiseproof.noisefit.packed import Packed, hook

ROOT = Path(__file__).resolve().parents[2]
SMOLLM2 = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct"
SCALE = 1 / 576**0.5


def load():
    if (SMOLLM2 / "config.json").exists():
        model = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32)
        return model, "SmolLM2-135M-Instruct"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config), "SmolLM2-135M's shape, random weights"


def plain(model, data):
    model(**data, use_cache=False).loss.backward()


def naive(model, data, layers):
    """Three forwards with full logits, as the paper's formula reads."""
    labels = torch.nn.functional.pad(data["labels"], (0, 1), value=-100)[:, 1:]
    keep = labels != -100
    inputs = {"input_ids": data["input_ids"], "use_cache": False}
    clean = model(**inputs).logits.float()
    noisy = []
    for _ in range(2):
        handles = [
            hooks.decoder_layers(model)[i].register_forward_hook(
                lambda _m, _a, h: h + noise.adaptive_noise(h, torch.randn_like(h), SCALE, None)
            )
            for i in layers
        ]
        noisy.append(model(**inputs).logits.float())
        for handle in handles:
            handle.remove()
    ce = torch.nn.functional.cross_entropy(clean[keep], labels[keep])
    teacher = clean.detach().log_softmax(-1)
    first, second = (z.log_softmax(-1) for z in noisy)

    def kl(a, b):
        return ((a.exp() * (a - b)).sum(-1) * keep).sum() / keep.sum()

    soft = 0.5 * (kl(teacher, first) + kl(teacher, second))
    (0.5 * ce + 0.5 * soft + 0.05 * kl(second.detach(), first)).backward()


def ours(model, data, layers):
    state = Packed(dict.fromkeys(layers, SCALE), clean=True, noisy=2, first=min(layers))
    forward = PackedForward(model, state, LossSpec("full", (0.5, 0.5, 0.05)), 64)
    forward.install()
    handles = hook(hooks.decoder_layers(model), state)
    forward.armed = True
    model(**data, use_cache=False).loss.backward()
    for handle in handles:
        handle.remove()
    forward.remove()


def resident():
    """Resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def measure(step, model):
    """(process CPU seconds, peak resident MB above the start) of one step.

    A thread samples the resident size every 2 ms; large tensors are mapped and unmapped singly, so
    it follows what torch holds.
    """
    model.zero_grad(set_to_none=True)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else freed memory of the last step hides this one's
    before, peak, done = resident(), [0.0], threading.Event()

    def sample():
        while not done.wait(0.002):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=sample)
    watcher.start()
    start = time.process_time()
    step()
    seconds = time.process_time() - start
    done.set()
    watcher.join()
    return seconds, peak[0] - before


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    model, what = load()
    model.train()
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(100, 40000, (4, 128), generator=g)
    labels = ids.clone()
    labels[:, :64] = -100
    data = {"input_ids": ids, "labels": labels}
    late, early = [20, 24, 28], [10, 17, 24]
    steps = {
        "plain": lambda: plain(model, data),
        "naive 20,24,28": lambda: naive(model, data, late),
        "ours 20,24,28": lambda: ours(model, data, late),
        "ours 10,17,24": lambda: ours(model, data, early),
    }
    seconds = {name: [] for name in steps}
    memory = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            cpu, peak = measure(step, model)
            if turn:  # the first round warms up
                seconds[name].append(cpu)
                memory[name].append(peak)
        print(f"round {turn} of {rounds}", file=sys.stderr)
    print(f"{what}, 4 x 128, 256 supervised, torch {torch.__version__}, {rounds} rounds")
    base, base_mb = (statistics.median(x["plain"]) for x in (seconds, memory))
    for name in steps:
        cpu, mb = statistics.median(seconds[name]), statistics.median(memory[name])
        print(f"{name:16} {cpu:6.2f} CPU s x{cpu / base:.2f}   +{mb:6.0f} MB x{mb / base_mb:.2f}")
    goals = [
        ("noisefit-late", seconds["ours 20,24,28"], base, 1.65),
        ("noisefit-early", seconds["ours 10,17,24"], base, 2.15),
        ("noisefit-memory", memory["ours 20,24,28"], base_mb, 1.2),
    ]
    for name, values, reference, goal in goals:
        ratio = statistics.median(values) / reference
        print(f"{name} ratio={ratio:.2f} goal<={goal} {'ok' if ratio <= goal else 'short'}")


if __name__ == "__main__":
    main()
