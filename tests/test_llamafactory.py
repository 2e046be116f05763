"""The unmodified llamafactory-cli on a tiny model."""

import json

import pytest
import yaml

import tiny

pytestmark = [pytest.mark.llamafactory, pytest.mark.slow]
NOISEFIT = {"noisefit": {"layers": [1, 2]}}
RECIPE = {
    "stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_rank": 4,
    "template": "chatml", "cutoff_len": 96, "dataset": "facts", "preprocessing_num_workers": 1,
    "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "learning_rate": 1.0e-3,
    "max_steps": 4, "logging_steps": 1, "save_steps": 100, "bf16": False, "fp16": False,
    "use_cpu": True, "report_to": "none", "overwrite_output_dir": True, "plot_loss": False,
    "output_dir": "out", "trust_remote_code": False,
}  # fmt: skip
OFF = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}


@pytest.fixture
def train(tiny_model, ragged, tmp_path):
    count = iter(range(100))

    def go(block=None, *overrides, env=None, launcher=(), code=0, until=None, cwd=None, **keys):
        folder = cwd or tmp_path / str(next(count))
        folder.mkdir(exist_ok=True)
        recipe = RECIPE | {"model_name_or_path": str(tiny_model), "dataset_dir": str(ragged)} | keys
        if block is not None:
            recipe["noiseproof"] = block
        (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
        command = [*launcher, "llamafactory-cli", "train", "r.yaml", *overrides]
        result = tiny.run(command, folder, env=env, until=until)
        if until is None:
            assert (result.returncode == 0) == (code == 0), result.stdout[-4000:]
        return folder / "out", result

    return go


def close(a, b, tolerance=1e-6):
    assert len(a) == len(b) > 0
    errors = [x[0] - y[0] for x, y in zip(a, b, strict=True)]
    assert max(map(abs, errors)) <= tolerance, errors


def test_no_block_and_empty_block_are_the_framework_to_the_bit(train):
    plain, _ = train(env=OFF)
    with_package, log = train()
    empty, _ = train({})
    assert tiny.losses(plain) == tiny.losses(with_package) == tiny.losses(empty)
    assert "noiseproof" not in log.stdout and not (with_package / "noiseproof.json").exists()
    weights = [
        (out / "adapter_model.safetensors").read_bytes() for out in (plain, with_package, empty)
    ]
    assert weights[0] == weights[1] == weights[2]
    receipt = json.loads((empty / "noiseproof.json").read_text())
    assert receipt["status"] == "finished" and receipt["config"] == {} and receipt["seed"] == 42


def test_nested_key_and_dotted_override(train):
    plain, _ = train()
    out, log = train(NOISEFIT, "noiseproof.noisefit.noise_scale=0.5", plot_loss=True)
    first = tiny.history(out)[0]
    assert first["loss"] != tiny.losses(plain)[0][0]
    total = 0.5 * first["noiseproof/loss_ce"] + 0.5 * first["noiseproof/loss_soft"]
    total += 0.05 * first["noiseproof/loss_consistency"]
    assert total == pytest.approx(first["loss"], rel=1e-6)
    assert first["noiseproof/noise_rel"] > 0 and first["noiseproof/loss_soft"] > 0
    receipt = json.loads((out / "noiseproof.json").read_text())
    assert receipt["config"]["noisefit"]["noise_scale"] == 0.5
    assert receipt["found"]["noisefit"]["layers"] == [1, 2]
    assert (out / "training_noiseproof_loss_ce.png").stat().st_size > 1000
    assert "noisefit v2 full" in log.stdout


def test_accumulation_and_two_processes_change_nothing(train):
    keys = {"lora_dropout": 0.0, "disable_gradient_checkpointing": False}
    one, _ = train(NOISEFIT, **keys)
    accumulated, _ = train(
        NOISEFIT, per_device_train_batch_size=2, gradient_accumulation_steps=4, **keys
    )
    close(tiny.losses(one), tiny.losses(accumulated))
    env = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2", "ACCELERATE_USE_CPU": "true"}
    two, _ = train(NOISEFIT, env=env, per_device_train_batch_size=4, **keys)
    assert json.loads((two / "noiseproof.json").read_text())["processes"] == 2
    close(tiny.losses(one), tiny.losses(two))
    from safetensors.torch import load_file

    a, b = (load_file(out / "adapter_model.safetensors") for out in (one, two))
    assert max(float((a[k] - b[k]).abs().max()) for k in a) <= 1e-5


def test_full_fine_tuning_and_packing(train):
    out, _ = train(NOISEFIT, finetuning_type="full", packing=True)
    assert tiny.history(out)[0]["noiseproof/loss_soft"] > 0


def test_a_kill_in_mid_run_and_resume_is_the_uninterrupted_run(train, tmp_path):
    keys = {"max_steps": 8, "save_steps": 4, "save_only_model": False, "finetuning_type": "full"}
    whole, _ = train(NOISEFIT, **keys | {"lr_scheduler_type": "constant"})
    # a run of the same length, killed for real, then resumed from its newest checkpoint
    folder = tmp_path / "again"
    train(
        NOISEFIT, cwd=folder, **keys | {"lr_scheduler_type": "constant"},
        until=lambda f: (f / "out/checkpoint-4/trainer_state.json").exists(),
    )  # fmt: skip
    resumed, _ = train(
        NOISEFIT, cwd=folder, **keys | {"lr_scheduler_type": "constant"},
        resume_from_checkpoint="out/checkpoint-4", overwrite_output_dir=False,
    )  # fmt: skip
    assert tiny.losses(resumed) == tiny.losses(whole)
    assert (resumed / "model.safetensors").read_bytes() == (
        whole / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("block", "keys", "says"),
    [
        ({"noisefit": {"noise_sdt": 1}}, {}, "did you mean `noise_std`"),
        ({"noisefit": None}, {}, "write `noisefit: {}`"),
        (NOISEFIT, {"stage": "dpo", "dataset": "pairs"}, "`stage` is dpo"),
    ],
)
def test_bad_blocks_are_refused_in_words(train, block, keys, says):
    _, result = train(block, code=1, **keys)
    assert says in result.stdout


def test_a_block_without_us_is_refused_by_the_framework(train):
    _, result = train(NOISEFIT, env=OFF, code=1)
    assert "noiseproof" in result.stdout
    out, _ = train(NOISEFIT, env=OFF, launcher=("python", "-m", "noiseproof.run"))
    assert tiny.history(out)[0]["noiseproof/loss_soft"] > 0


@pytest.mark.parametrize("stage", ["dpo", "rm"])
def test_preference_stages_are_not_disturbed(train, stage):
    keys = {"stage": stage, "dataset": "pairs", "max_steps": 2}
    plain, _ = train(**keys)
    empty, _ = train({}, **keys)
    assert tiny.losses(plain) == tiny.losses(empty)
    assert (empty / "noiseproof.json").exists()
