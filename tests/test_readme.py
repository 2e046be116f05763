"""The README says what is there: keys, make targets, commands, files."""

import re
from pathlib import Path

from noiseproof_converters import keys
from noiseproof_converters.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_keys_is_the_schema():
    table = re.search(r"<!-- keys -->\n(.*)<!-- /keys -->", README, re.S)
    assert table is not None and table[1].strip() == keys.as_markdown()


def test_its_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z]+)", README):
        assert re.search(rf"^{target}:", makefile, re.M), target
    commands = set(re.findall(r"^noiseproof ([a-z]+)", README, re.M))
    assert commands == set(main.commands)


def test_its_files_exist():
    tree = README.split("## Files")[1]
    for name in re.findall(r"\b(\w+\.py)\b", tree):
        assert list((ROOT / "plugins").rglob(name)), name
