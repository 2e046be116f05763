"""The unmodified `axolotl train` on a tiny model. Rows of equal length: Axolotl averages micro-batches."""

import hashlib
import json

import pytest
import yaml

import tiny

pytestmark = [pytest.mark.axolotl, pytest.mark.slow]
NOISEFIT = {"noisefit": {"layers": [1, 2]}}
PLUGIN = "noiseproof.axolotl.NoiseproofPlugin"
RECIPE = {
    "sequence_len": 384, "micro_batch_size": 8, "gradient_accumulation_steps": 1, "max_steps": 4,
    "num_epochs": 1, "learning_rate": 1.0e-3, "optimizer": "adamw_torch", "lr_scheduler": "constant",
    "logging_steps": 1, "bf16": False, "fp16": False, "tf32": False, "attn_implementation": "sdpa",
    "dataset_num_proc": 1, "val_set_size": 0, "output_dir": "out", "train_on_inputs": False,
    "dataset_prepared_path": "prepared", "gradient_checkpointing": True, "seed": 7,
    "special_tokens": {"pad_token": "<|endoftext|>"}, "include_tkps": False,
}  # fmt: skip
LORA = {
    "adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0,
    "lora_target_modules": ["q_proj", "v_proj"], "lora_mlp_kernel": False,
    "lora_qkv_kernel": False, "lora_o_kernel": False,
}  # fmt: skip


@pytest.fixture
def train(tiny_model, even, tmp_path):
    count = iter(range(100))

    def go(block=None, env=None, code=0, **keys):
        folder = tmp_path / str(next(count))
        folder.mkdir()
        data = {"path": str(even / "facts.json"), "ds_type": "json", "type": "alpaca"}
        recipe = RECIPE | {"base_model": str(tiny_model), "datasets": [data]} | keys
        if block is not None:
            recipe["noiseproof"] = block
        (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
        result = tiny.run(["axolotl", "train", "r.yaml"], folder, env=env)
        assert (result.returncode == 0) == (code == 0), result.stdout[-4000:]
        return folder / "out", result

    return go


def digest(out):
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def state(out):
    """Axolotl keeps trainer_state.json in its last checkpoint."""
    return next(iter(sorted(out.glob("checkpoint-*"))))


def test_no_block_and_empty_block_are_the_framework_to_the_bit(train):
    plain, _ = train(env={"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"})
    with_package, log = train()
    empty, _ = train({}, plugins=[PLUGIN])
    losses = [tiny.losses(state(out)) for out in (plain, with_package, empty)]
    assert losses[0] == losses[1] == losses[2] and len(losses[0]) == 4
    assert digest(plain) == digest(with_package) == digest(empty)
    assert "noiseproof" not in log.stdout and not (with_package / "noiseproof.json").exists()
    assert json.loads((empty / "noiseproof.json").read_text())["status"] == "finished"


def test_noisefit_enables_itself_and_does_not_depend_on_accumulation(train):
    one, log = train(NOISEFIT)
    assert "enabled by its block" in log.stdout and "noisefit v2 full" in log.stdout
    first = tiny.history(state(one))[0]
    total = 0.5 * first["noiseproof/loss_ce"] + 0.5 * first["noiseproof/loss_soft"]
    total += 0.05 * first["noiseproof/loss_consistency"]
    assert total == pytest.approx(first["loss"], rel=1e-6) and first["noiseproof/loss_soft"] > 0
    four, _ = train(NOISEFIT, micro_batch_size=2, gradient_accumulation_steps=4, plugins=[PLUGIN])
    for a, b in zip(tiny.losses(state(one)), tiny.losses(state(four)), strict=True):
        assert abs(a[0] - b[0]) <= 1e-6


def test_lora_repeats_bit_for_bit_and_packing_runs(train):
    runs = [train(NOISEFIT, plugins=[PLUGIN], **LORA)[0] for _ in range(2)]
    assert tiny.losses(state(runs[0])) == tiny.losses(state(runs[1]))
    packed, _ = train(
        NOISEFIT, plugins=[PLUGIN], sample_packing=True, pad_to_sequence_len=True,
        micro_batch_size=2, **LORA,
    )  # fmt: skip
    assert tiny.history(state(packed))[0]["noiseproof/loss_soft"] > 0


def test_a_typo_names_the_nearest_key(train):
    _, result = train({"noisefit": {"noise_sdt": 1}}, code=1)
    assert "did you mean `noise_std`" in result.stdout


def validated(recipe, tiny_model, even):
    import noiseproof._autoload as autoload

    autoload.install()
    import axolotl.utils.config as config
    from axolotl.integrations.base import PluginManager
    from axolotl.utils.dict import DictDefault

    assert not autoload.ERRORS
    data = {"path": str(even / "facts.json"), "ds_type": "json", "type": "alpaca"}
    cfg = DictDefault(RECIPE | {"base_model": str(tiny_model), "datasets": [data]} | recipe)
    result = config.validate_config(cfg)
    assert PLUGIN in PluginManager.get_instance().plugins
    return result


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"noiseproof": {"noisefit": None}}, "write `noisefit: {}`"),
        ({"noiseproof": {"noisefitt": {}}}, "did you mean `noisefit`"),
        ({"noiseproof": NOISEFIT, "rl": "orpo", "orpo_alpha": 0.1}, "`orpo_alpha` is set"),
        ({"noiseproof": NOISEFIT, "rl": "dpo"}, "is dpo, but noisefit"),
        ({"noiseproof": NOISEFIT, "reward_model": True}, "is reward_model, but noisefit"),
        ({"noiseproof": NOISEFIT, "sample_packing": True, "flash_attention": True,
          "attn_implementation": None}, "attn_implementation: sdpa"),
    ],
)  # fmt: skip
def test_conflicts_are_found_before_a_model_is_loaded(recipe, says, tiny_model, even):
    with pytest.raises(ValueError) as caught:
        validated(recipe, tiny_model, even)
    assert says in str(caught.value)


def test_the_block_survives_axolotls_dump(tiny_model, even):
    from noiseproof.config import NoiseproofConfig

    cfg = validated({"noiseproof": {"noisefit__noise_scale": "5e-1"}}, tiny_model, even)
    again = NoiseproofConfig.model_validate(cfg.noiseproof.to_dict())
    assert again.noisefit.noise_scale == 0.5
