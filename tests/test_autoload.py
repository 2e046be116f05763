"""The entry point on `import torch`."""

import subprocess
import sys

from noiseproof import _autoload


def python(code, **env):
    import os

    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | env,
        check=False,
    )


def test_watched_equals_the_tables_of_patches():
    from noiseproof import axolotl_enable, llamafactory

    tables = {"noiseproof.llamafactory": llamafactory, "noiseproof.axolotl_enable": axolotl_enable}
    for owner, table in tables.items():
        assert {n for n, o in _autoload.WATCHED.items() if o == owner} == table.PATCHES.keys()


def test_it_is_installed_once_and_can_be_switched_off():
    code = (
        "import sys, torch, noiseproof._autoload as a\n"
        "a.install()\n"
        "print(sum(type(f).__name__ == '_AfterImport' for f in sys.meta_path), len(a.ERRORS))"
    )
    assert python(code).stdout.split() == ["1", "0"]
    assert python(code, NOISEPROOF_DISABLE="1").stdout.split() == ["0", "0"]


def test_it_loads_the_standard_library_only():
    code = "import sys, noiseproof._autoload; print([m for m in ('pydantic','torch') if m in sys.modules])"
    assert python(code).stdout.strip() == "[]"


HOOK = (
    "import sys, types, noiseproof._autoload as a\n"
    "owner = types.ModuleType('owner'); sys.modules['owner'] = owner\n"
    "a.WATCHED['wave'] = 'owner'; owner.PATCHES = {'wave': lambda m: %s}\n"
    "a.install(); import wave, inspect, importlib\n"
)


def test_a_module_is_patched_after_its_import_and_keeps_its_loader():
    end = "inspect.getsource(wave); print(wave.seen, type(wave.__loader__).__name__, a.ERRORS)"
    out = python(HOOK % "setattr(m, 'seen', 1)" + end)
    assert out.stdout.split() == ["1", "SourceFileLoader", "{}"], out.stderr


def test_a_raising_patch_never_reaches_the_host():
    out = python(HOOK % "1/0" + "print(list(a.ERRORS))")
    assert out.returncode == 0 and out.stdout.strip() == "['wave']", out.stderr
