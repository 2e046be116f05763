"""noiseproof keys, doctor, convert."""

import json

import pytest
import yaml
from click.testing import CliRunner

from noiseproof_converters import keys
from noiseproof_converters.cli import main


def invoke(*args, code=0):
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert result.exit_code == code, result.output
    return result.output


def test_keys_lists_every_field():
    text = invoke("keys")
    for name in ("noisefit.noise_scale", "noisefit.calibration.draws", "noisefit.rdrop.alpha"):
        assert f"noiseproof.{name} " in text
    schema = json.loads(invoke("keys", "--json-schema"))
    assert "noisefit" in schema["properties"]["noiseproof"]["properties"]
    assert len({key.path for key in keys.rows()}) == len(keys.rows()) > 20


def test_convert_writes_what_both_frameworks_read(tmp_path):
    data = tmp_path / "facts.csv"
    data.write_bytes('prompt,response\n"Is it, red?",yes\nTwo\u00e9?,"a\nb"\n'.encode("utf-8-sig"))
    out = tmp_path / "out"
    text = invoke("convert", data, "--out", out)
    rows = json.loads((out / "facts.json").read_text())
    assert rows[0] == {"instruction": "Is it, red?", "input": "", "output": "yes"}
    assert rows[1]["output"] == "a\nb" and "dataset: facts" in text
    assert (
        yaml.safe_load((out / "facts.axolotl.yaml").read_text())["datasets"][0]["type"] == "alpaca"
    )
    info = out / "dataset_info.json"
    info.write_text(json.dumps({"other": {"file_name": "o.json"}}))
    invoke("convert", data, "--out", out)
    assert set(json.loads(info.read_text())) == {"other", "facts"}
    info.write_text(json.dumps({"facts": {"file_name": "o.json"}}))
    assert "another data set called `facts`" in invoke("convert", data, "--out", out, code=2)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a,b\n1,2\n", "bad.csv:1: no column 'prompt'"),
        (b"prompt,response\nx,y\nz,\n", "bad.csv:3: the cell `response` is empty"),
        (b"prompt,response\nx,y,z\n", "bad.csv:2: 3 cells"),
        (b'prompt,response\n"a\nb",c\nz,\n', "bad.csv:4: the cell"),
        (b"prompt,response\nx,\xe9\n", "bad.csv:2: not UTF-8"),
        (b"prompt,response\nx,\0\n", "bad.csv:2: holds a NUL"),
        (b'prompt,response\n"x"y,z\n', "check the quotes"),
        (b"prompt,response\n", "no rows"),
        (b"", "no column"),
    ],
)
def test_bad_csv_is_reported_by_line_and_nothing_is_written(tmp_path, content, says):
    data = tmp_path / "bad.csv"
    data.write_bytes(content)
    assert says in invoke("convert", data, "--out", tmp_path / "out", code=2)
    assert not (tmp_path / "out").exists()


def test_a_name_cannot_leave_the_folder(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,response\nx,y\n")
    text = invoke("convert", tmp_path / "a.csv", "--out", tmp_path / "o", "--name", "../x", code=2)
    assert "--name" in text and not (tmp_path / "x.json").exists()


def recipe(tmp_path, **keys):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(keys))
    return path


def test_doctor_on_recipes(tmp_path):
    assert "autoload:" in invoke("doctor")
    good = recipe(tmp_path, base_model="m", noiseproof={"noisefit": {"layers": [1]}})
    text = invoke("doctor", good)
    assert "on: noisefit" in text and "the block enables it" in text
    bad = recipe(
        tmp_path, model_name_or_path="m", stage="dpo", pref_loss="ipo", noiseproof={"noisefit": {}}
    )
    text = invoke("doctor", bad, code=2)
    assert "refused: noiseproof.noisefit: `stage` is dpo" in text and "plain sigmoid" in text
    assert "no `noiseproof:` block" in invoke("doctor", recipe(tmp_path, base_model="m"))
    (tmp_path / "broken.yaml").write_text("a: [1\nb: 2")
    assert "broken.yaml:2" in invoke("doctor", tmp_path / "broken.yaml", code=2)
    assert "no such" in invoke("doctor", tmp_path / "none.yaml", code=2)


def test_doctor_on_an_output_folder(tmp_path):
    assert "was not active" in invoke("doctor", tmp_path, code=2)
    receipt = {"noiseproof": "0", "status": "started", "steps": 3, "config": {}}
    (tmp_path / "noiseproof.json").write_text(json.dumps(receipt))
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    for step in (2, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            (folder / name).write_bytes(b"x")
        (folder / "trainer_state.json").write_text("{}")
        tensor = len(header).to_bytes(8, "little") + header + b"0000"
        (folder / "model.safetensors").write_bytes(tensor)
    assert "newest complete checkpoint: checkpoint-10" in invoke("doctor", tmp_path)
    (folder / "model.safetensors").write_bytes(tensor[:-2])
    text = invoke("doctor", tmp_path)
    assert "checkpoint-10: model.safetensors is cut short" in text
    assert "newest complete checkpoint: checkpoint-2" in text
