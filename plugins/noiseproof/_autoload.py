"""Called by PyTorch at the end of every `import torch` (entry point group `torch.backends`).

Neither LLaMA-Factory nor a recipe of Axolotl without a `plugins:` line offers us a way in, so this
waits for a few of their modules and patches each right after its import. It runs in every process
of everybody who has the package installed, hence: standard library only, it never raises, and it
does nothing unless one of WATCHED is imported. What goes wrong is kept in ERRORS and raised when,
and only when, a recipe has our block. `NOISEPROOF_DISABLE=1` switches it off.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# The modules to patch and who patches them; tests compare this with the PATCHES tables.
WATCHED = {
    "llamafactory.hparams.finetuning_args": "noiseproof.llamafactory",
    "llamafactory.hparams.parser": "noiseproof.llamafactory",
    "llamafactory.train.sft.workflow": "noiseproof.llamafactory",
    "llamafactory.train.pt.workflow": "noiseproof.llamafactory",
    "llamafactory.train.rm.workflow": "noiseproof.llamafactory",
    "llamafactory.train.kto.workflow": "noiseproof.llamafactory",
    "llamafactory.train.dpo.trainer": "noiseproof.llamafactory",
    "llamafactory.extras.ploting": "noiseproof.llamafactory",
    "axolotl.utils.config": "noiseproof.axolotl_enable",
}
ERRORS: dict[str, Exception] = {}


def apply(module: ModuleType) -> None:
    """Patch one watched module; keep the error instead of raising it into the host's import."""
    try:
        patcher = importlib.import_module(WATCHED[module.__name__])
        patcher.PATCHES[module.__name__](module)
    except Exception as error:
        ERRORS[module.__name__] = error


class _Loader:
    """The module's real loader with one more thing to do afterwards."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def create_module(self, spec: ModuleSpec) -> Any:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # give the real loader back first, so that inspect, pickle and reload see nothing of us
        module.__loader__ = self._inner
        if module.__spec__ is not None:
            module.__spec__.loader = self._inner
        self._inner.exec_module(module)
        apply(module)


class _AfterImport:
    """A finder that finds nothing itself: it lets the others find, and wraps the loader."""

    def __init__(self) -> None:
        self._busy: set[str] = set()  # by name, so that two threads can import two modules

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in WATCHED or name in self._busy:
            return None
        self._busy.add(name)
        try:
            for finder in list(sys.meta_path):
                find = getattr(finder, "find_spec", None)
                spec: ModuleSpec | None = (
                    None if finder is self or find is None else find(name, path, target)
                )
                if spec is not None and spec.loader is not None:
                    spec.loader = _Loader(spec.loader)  # type: ignore[assignment, unused-ignore]
                    return spec
        finally:
            self._busy.discard(name)
        return None


def install() -> None:
    """Start to wait for the WATCHED modules; twice is once; never raises."""
    try:
        if os.environ.get("NOISEPROOF_DISABLE", "") not in ("", "0"):
            return
        if any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
            return
        sys.meta_path.insert(0, _AfterImport())
        for name in WATCHED:
            module = sys.modules.get(name)
            if module is None:
                continue
            if getattr(module.__spec__, "_initializing", False):
                ERRORS[name] = RuntimeError(f"{name} was half imported when noiseproof was loaded")
            else:
                apply(module)
    except Exception as error:
        ERRORS["install"] = error
