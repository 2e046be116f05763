"""Every recipe is taken by its own framework's parser."""

from pathlib import Path

import pytest
import yaml

from noiseproof.block import Recipe
from noiseproof.config import check

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
AXOLOTL = [path for path in RECIPES if "axolotl" in path.name]
LLAMAFACTORY = [path for path in RECIPES if "llamafactory" in path.name]


def test_all_recipes_are_covered():
    assert len(RECIPES) == len(AXOLOTL) + len(LLAMAFACTORY) == 4
    for path in RECIPES:
        head = path.read_text().splitlines()[:4]
        assert [line.split(":")[0] for line in head] == ["# What", "# Before", "# Run", "# Expect"]
        check(yaml.safe_load(path.read_text())["noiseproof"], Recipe(framework="x"))


@pytest.mark.llamafactory
@pytest.mark.parametrize("path", LLAMAFACTORY, ids=lambda p: p.name)
def test_llamafactory_parses_it(path, tmp_path, monkeypatch):
    import noiseproof._autoload as autoload

    autoload.install()
    from llamafactory.hparams import get_train_args

    monkeypatch.chdir(tmp_path)
    recipe = yaml.safe_load(path.read_text()) | {"bf16": False, "use_cpu": True}
    *_, finetuning, _ = get_train_args(recipe)
    assert finetuning.noiseproof == check(recipe["noiseproof"]).resolved()


@pytest.mark.axolotl
@pytest.mark.parametrize("path", AXOLOTL, ids=lambda p: p.name)
def test_axolotl_parses_it(path):
    from axolotl.utils.config import prepare_plugins, validate_config
    from axolotl.utils.dict import DictDefault

    recipe = DictDefault(yaml.safe_load(path.read_text()))
    prepare_plugins(recipe)
    cfg = validate_config(recipe)
    assert cfg.noiseproof.noisefit is not None
