"""A tiny real model, tiny data, and the frameworks' own commands as subprocesses. All offline."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

ENV = {
    "AXOLOTL_DO_NOT_TRACK": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "offline", "RAY_USAGE_STATS_ENABLED": "0",
    "GLOO_SOCKET_IFNAME": "lo",
}  # fmt: skip
NOUNS = "river stone bird lamp train apple garden window kettle bridge candle forest".split()
ADJECTIVES = "red small old quiet bright heavy cold early round broken".split()
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def sentences(count, seed=0):
    rng = random.Random(seed)
    return [
        f"Where is the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} number {rng.randint(1, 99)}?"
        for _ in range(count)
    ]


def build(folder: Path) -> Path:
    """A Llama of 0.2 M parameters and a byte-level BPE tokenizer with a ChatML template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(sentences(400) + ["user", "assistant", "system"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>",
        model_max_length=512,
    )  # fmt: skip
    fast.chat_template = TEMPLATE
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(fast),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            max_position_embeddings=512,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=fast.eos_token_id,
        )  # fmt: skip
    )
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write_alpaca(folder: Path, rows=32, ragged=True, seed=1) -> Path:
    """facts.json and LLaMA-Factory's dataset_info.json; equal answers' lengths when not ragged."""
    rng = random.Random(seed)
    data = []
    for question in sentences(rows, seed):
        words = rng.sample(NOUNS, rng.randint(2, 8) if ragged else 3)
        data.append({"instruction": question, "input": "", "output": " ".join(words)})
    if not ragged:
        for row in data:
            row["output"] = "Near the old bridge"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "facts.json").write_text(json.dumps(data))
    pairs = [row | {"chosen": row["output"], "rejected": "I do not know"} for row in data]
    (folder / "pairs.json").write_text(json.dumps(pairs))
    info = {
        "facts": {"file_name": "facts.json"},
        "pairs": {
            "file_name": "pairs.json",
            "ranking": True,
            "columns": {"prompt": "instruction", "query": "input", "chosen": "chosen",
                        "rejected": "rejected"},
        },
    }  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def run(command, cwd, env=None, timeout=300, until=None):
    """Run a command of this environment; its whole process group is killed on time-out.

    `until(folder)` true kills the group with SIGKILL: a power cut at that moment.
    """
    folder = Path(sys.executable).parent
    full = {k: v for k, v in os.environ.items() if not k.startswith(("NOISEPROOF", "PYTEST"))}
    full |= ENV | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"} | (env or {})
    log = Path(cwd) / "run.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [str(part) for part in command], cwd=cwd, env=full, stdout=out,
            stderr=subprocess.STDOUT, start_new_session=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        import time

        end = time.monotonic() + timeout
        try:
            while process.poll() is None and time.monotonic() < end:
                if until is not None and until(Path(cwd)):
                    break
                time.sleep(0.05)
            code = process.poll()
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
    text = log.read_text(errors="replace")
    if code is None and until is None:
        raise AssertionError(f"no end after {timeout} s: {command}\n{text[-3000:]}")
    return subprocess.CompletedProcess(command, -9 if code is None else code, text, "")


def losses(folder: Path):
    """The training losses and gradient norms of trainer_state.json, in full precision."""
    state = json.loads(Path(folder, "trainer_state.json").read_text())
    return [(x["loss"], x["grad_norm"]) for x in state["log_history"] if "loss" in x]


def history(folder: Path):
    """Training lines of trainer_state.json."""
    state = json.loads(Path(folder, "trainer_state.json").read_text())
    return [x for x in state["log_history"] if "loss" in x]
