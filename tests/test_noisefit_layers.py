"""Layer choice and calibration."""

import json
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from architectures import batch, build
from noiseproof.noisefit import policy, probe
from noiseproof.noisefit.config import NoiseFitConfig
from noiseproof.noisefit.layers import Cell, by_depth, choose_layers, rank_by_snr


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (12, [3, 7, 10, 11]),
        (16, [4, 9, 14, 15]),
        (24, [7, 14, 15, 22, 23]),
        (32, [8, 9, 19, 20, 30, 31]),
        (40, [12, 23, 24, 25, 37, 38, 39]),
    ],
)
def test_depth_bands_with_scores_rising_with_depth(layers, expected):
    best = {i: float(i + 1) for i in range(layers)}
    cap = -int(-(layers**0.5) // 1)
    assert by_depth(best, layers, cap, 3) == expected


def test_a_damaging_layer_is_never_chosen_and_all_damaging_is_an_error():
    config = NoiseFitConfig(calibration={"scale_factors": [1.0, 2.0]})
    harmless = [[Cell(1.0, 0.1, 0.0), Cell(2.0, 0.4, 0.01)] for _ in range(4)]
    harmful = [Cell(1.0, 9.0, 0.5), Cell(2.0, 40.0, 0.9)]
    choice = choose_layers([*harmless, harmful], config)
    assert 4 not in choice.factors
    with pytest.raises(ValueError, match="max_ce_delta_ratio"):
        choose_layers([harmful] * 3, config)


def test_the_smallest_factor_that_reaches_the_target_is_taken():
    config = NoiseFitConfig(num_noise_layers=1)
    cells = [[Cell(0.5, 0.1, 0), Cell(1.0, 0.8, 0), Cell(2.0, 1.0, 0)]]
    choice = choose_layers(cells, config)
    assert choice.target == pytest.approx(0.75) and choice.factors == {0: 1.0}


def test_snr_ranking():
    assert rank_by_snr([3.0, 1.0, 2.0, 5.0], 2, "largest") == [0, 3]
    assert rank_by_snr([3.0, 1.0, 2.0, 5.0], 2, "lowest") == [1, 2]
    with pytest.raises(ValueError, match="num_noise_layers"):
        rank_by_snr([1.0], 2, "largest")


def trainer_of(folder, rows=8):
    data = batch(rows=rows)
    return SimpleNamespace(
        train_dataset=[{k: v[i] for k, v in data.items()} for i in range(rows)],
        data_collator=lambda rows: {k: torch.stack([r[k] for r in rows]) for k in rows[0]},
        args=SimpleNamespace(
            per_device_train_batch_size=4, output_dir=str(folder), resume_from_checkpoint=None
        ),
        accelerator=SimpleNamespace(
            num_processes=1,
            process_index=0,
            device=torch.device("cpu"),
            reduce=lambda x, reduction: x,
        ),
        is_world_process_zero=lambda: True,
    )


def test_calibration_repeats_and_leaves_no_trace(tmp_path):
    model = build("llama").train()
    config = NoiseFitConfig(calibration={"max_ce_delta_ratio": 0.5})
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    first, _ = probe.auto_choice(trainer_of(tmp_path / "a"), model, config)
    again, _ = probe.auto_choice(trainer_of(tmp_path / "b"), model, config)
    assert first == again and 1 <= len(first) <= 2
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(layer._forward_hooks for layer in model.model.layers)


def test_a_policy_is_read_back_without_a_forward(tmp_path):
    model = build("llama")
    path = tmp_path / "policy.json"
    config = NoiseFitConfig(calibration={"max_ce_delta_ratio": 0.5, "policy_file": str(path)})
    written, _ = probe.auto_choice(trainer_of(tmp_path), model, config)
    data = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert data["format"] == policy.FORMAT and len(data["layers"]) == 4
    model.forward = model.model.forward = lambda *a, **k: pytest.fail("a forward was run")
    read, found = probe.auto_choice(trainer_of(tmp_path), model, config)
    assert read == written and found == {"read": "policy.json"}
    path.write_text(path.read_text().replace('"num_layers": 4', '"num_layers": 5'))
    with pytest.raises(ValueError, match="num_layers 5, this model has 4"):
        probe.auto_choice(trainer_of(tmp_path), model, config)
    path.write_text("{")
    with pytest.raises(ValueError, match="policy.json:1"):
        probe.auto_choice(trainer_of(tmp_path), model, config)


@pytest.mark.parametrize("preset", ["v1", "v2"])
def test_snr_choice(tmp_path, preset):
    model = build("llama")
    config = NoiseFitConfig(preset=preset, layers="snr", num_noise_layers=2)
    assert len(probe.snr_choice(trainer_of(tmp_path), model, config)) == 2
