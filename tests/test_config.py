"""The block: defaults, bounds, unknown keys, refusals; no torch."""

import subprocess
import sys

import pytest

from noiseproof.block import Recipe
from noiseproof.config import NoiseproofConfig, check


@pytest.mark.parametrize(
    ("block", "says"),
    [
        (3, "must be a mapping"),
        ({"noisefitt": {}}, "did you mean `noisefit`"),
        ({"noisefit": None}, "write `noisefit: {}`"),
        ({"noisefit": {"noise_sdt": 1}}, "did you mean `noise_std`"),
        ({"noisefit": {"hybrid_loss_alpha": 1.5}}, "noiseproof.noisefit.hybrid_loss_alpha"),
        ({"noisefit": {"noise_scale": 0}}, "greater than 0"),
        ({"noisefit": {"noise_scale": float("inf")}}, "finite"),
        ({"noisefit": {"temperature": 0}}, "noiseproof.noisefit.temperature"),
        ({"noisefit": {"layers": "best"}}, "noiseproof.noisefit.layers"),
        ({"noisefit": {"layers": []}}, "empty list"),
        ({"noisefit": {"layers": [1, 1]}}, "twice"),
        ({"noisefit": {"layers": [-1]}}, "noiseproof.noisefit.layers"),
        ({"noisefit": {"layers": [1], "num_noise_layers": 1}}, "num_noise_layers"),
        ({"noisefit": {"layers": [1], "calibration": {}}}, "calibration"),
        ({"noisefit": {"calibration": {"scale_factors": [1, 1]}}}, "rise strictly"),
        ({"noisefit": {"noise_std": 0.1}}, "belongs to preset v1"),
        ({"noisefit": {"preset": "v1", "noise_scale": 1}}, "belongs to preset v2"),
        ({"noisefit": {"preset": "v1", "layers": "auto"}}, "no `layers: auto`"),
        ({"noisefit": {"preset": "v1", "loss": "ce_kl"}}, "`loss: full` only"),
        ({"noisefit": {"rdrop": {}}}, "belongs to `loss: rdrop`"),
        ({"noisefit": {"loss": "rdrop", "layers": [1]}}, "adds no noise"),
        ({"noisefit__a__b": 1, "noisefit": 3}, "is not a mapping"),
    ],
)
def test_mistakes_are_named(block, says):
    with pytest.raises(ValueError) as caught:
        check(block)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "block",
    [
        {},
        {"noisefit": {}},
        {"noisefit": {"preset": "v1", "noise_std": "1e-1"}},
        {"noisefit": {"loss": "rdrop", "rdrop": {"alpha": 2}}},
        {"noisefit__layers": [1, 2], "noisefit__noise_scale": "0.5"},
        {"noisefit": {"calibration": {"batches": 3}}},
    ],
)
def test_a_resolved_block_validates_again(block):
    config = check(block)
    assert NoiseproofConfig.model_validate(config.resolved()) == config


def test_defaults_follow_the_preset():
    v2, v1 = check({"noisefit": {}}).noisefit, check({"noisefit": {"preset": "v1"}}).noisefit
    assert (v2.lam, v2.layer_choice, v2.scale) == (0.05, "auto", 1.0)
    assert (v1.lam, v1.layer_choice, v1.std) == (0.1, "snr", 0.1)


REFUSED = [
    ("axolotl", "sft", {"kd_trainer": True}),
    ("axolotl", "sft", {"use_eaft": True}),
    ("axolotl", "sft", {"orpo_alpha": 0.1}),
    ("axolotl", "sft", {"context_parallel_size": 2}),
    ("axolotl", "sft", {"tensor_parallel_size": 2}),
    ("axolotl", "sft", {"label_smoothing_factor": 0.1}),
    ("axolotl", "sft", {"plugins": ["axolotl.integrations.diffusion.DiffusionPlugin"]}),
    ("axolotl", "sft", {"sample_packing": True, "flash_attention": True}),
    ("axolotl", "sft", {"sample_packing": True, "attn_implementation": "flex_attention"}),
    ("axolotl", "dpo", {}),
    ("axolotl", "reward_model", {}),
    ("llamafactory", "sft", {"use_dft_loss": True}),
    ("llamafactory", "sft", {"use_eaft_loss": True}),
    ("llamafactory", "sft", {"use_asft_loss": True}),
    ("llamafactory", "sft", {"use_mca": True}),
    ("llamafactory", "sft", {"use_kt": True}),
    ("llamafactory", "sft", {"label_smoothing_factor": 0.1}),
    ("llamafactory", "sft", {"neat_packing": True, "flash_attn": "fa2"}),
    ("llamafactory", "rm", {}),
    ("llamafactory", "dpo", {}),
]


@pytest.mark.parametrize(("framework", "stage", "settings"), REFUSED)
def test_conflicts_name_the_key(framework, stage, settings):
    recipe = Recipe(framework=framework, stage=stage, settings=settings)
    with pytest.raises(ValueError) as caught:
        check({"noisefit": {"layers": [1]}}, recipe)
    names = list(settings) or ["rl", "stage"]
    assert any(name in str(caught.value) or "Diffusion" in str(caught.value) for name in names)
    assert check({}, recipe).resolved() == {}  # the empty block goes with everything


def test_neftune_is_only_warned_about():
    recipe = Recipe(framework="axolotl", settings={"neftune_noise_alpha": 5})
    config = check({"noisefit": {"loss": "kl_only"}}, recipe)
    text = " ".join(config.noisefit.warnings(recipe))
    assert "neftune_noise_alpha" in text and "ablation" in text


def test_importing_the_configuration_loads_no_torch():
    code = "import sys, noiseproof.config, noiseproof_converters.cli; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
