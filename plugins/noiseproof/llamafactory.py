"""LLaMA-Factory: PATCHES is everything of it that is replaced. Tested with 0.9.5.

Each entry runs right after the module's import, marks what it puts there with `__noiseproof__`,
and leaves alone what is marked already (a reload).
"""

import dataclasses
import importlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Optional, Union

from noiseproof import _autoload
from noiseproof.block import Recipe
from noiseproof.config import check

logger = logging.getLogger(__name__)
_HELP = "The block of noiseproof: methods against noisy data (see `noiseproof keys`)."
_TRAINERS = {
    "sft": ("llamafactory.train.sft.workflow", "CustomSeq2SeqTrainer"),
    "pt": ("llamafactory.train.pt.workflow", "CustomTrainer"),
    "rm": ("llamafactory.train.rm.workflow", "PairwiseTrainer"),
    "kto": ("llamafactory.train.kto.workflow", "CustomKTOTrainer"),
    # not the workflow: run_dpo imports the class inside the function
    "dpo": ("llamafactory.train.dpo.trainer", "CustomDPOTrainer"),
}
_UNREACHABLE = ("use_mca", "use_hyper_parallel", "use_kt", "use_megatron_bridge")


def as_mapping(value: Any) -> dict[str, Any] | None:
    """The recipe's `noiseproof` value as a validated plain dict; None stays None.

    Raises:
        ValueError: it is no mapping, or the block is wrong.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise ValueError(
                f"noiseproof: must be a mapping, not {value!r}; write `noiseproof: {{}}`"
            ) from None
    return None if value is None else check(value).resolved()


def _take_our_key(module: ModuleType) -> None:
    base = module.FinetuningArguments
    if hasattr(base, "__noiseproof__"):
        return

    def __post_init__(self: Any) -> None:
        base.__post_init__(self)
        self.noiseproof = as_mapping(self.noiseproof)
        if self.noiseproof is not None:
            parser = importlib.import_module("llamafactory.hparams.parser")
            _require({"llamafactory.hparams.parser": "get_train_args"}, parser)

    # the one shape of a dict that HfArgumentParser takes
    field: Any = dataclasses.field(default=None, metadata={"help": _HELP})
    module.FinetuningArguments = dataclasses.make_dataclass(  # type: ignore[attr-defined]
        base.__name__,
        [("noiseproof", Optional[Union[dict, str]], field)],  # noqa: UP007, UP045
        bases=(base,),
        namespace={
            "__post_init__": __post_init__,
            "__module__": base.__module__,
            "__doc__": base.__doc__,
            "__noiseproof__": True,
        },
    )


def recipe_of(arguments: tuple[Any, ...]) -> Recipe:
    """What methods may ask, from LLaMA-Factory's argument dataclasses."""
    settings: dict[str, Any] = {}
    for group in arguments:
        settings |= {f.name: getattr(group, f.name, None) for f in dataclasses.fields(group)}
    return Recipe(framework="llamafactory", stage=settings["stage"], settings=settings)


def _refuse(module: ModuleType) -> None:
    original = module.get_train_args
    if hasattr(original, "__noiseproof__"):
        return

    def get_train_args(*args: Any, **kwargs: Any) -> Any:
        groups = original(*args, **kwargs)
        finetuning = next(group for group in groups if hasattr(group, "noiseproof"))
        if finetuning.noiseproof is not None:
            recipe = recipe_of(groups)
            for key in _UNREACHABLE:
                if recipe.get(key):
                    raise ValueError(
                        f"noiseproof: `{key}` has trainers of its own; set it to false"
                    )
            if recipe.stage not in _TRAINERS:
                raise ValueError(
                    f"noiseproof: stage {recipe.stage} is not supported; drop the block"
                )
            check(finetuning.noiseproof, recipe)
            module_name, class_name = _TRAINERS[recipe.stage]
            _require({module_name: class_name}, importlib.import_module(module_name))
            finetuning._noiseproof_recipe = recipe
        return groups

    get_train_args.__noiseproof__ = True  # type: ignore[attr-defined]
    module.get_train_args = get_train_args  # type: ignore[attr-defined]


def _require(names: dict[str, str], module: ModuleType) -> None:
    """A block that would silently do nothing is an error."""
    for module_name, name in names.items():
        if hasattr(getattr(module, name, None), "__noiseproof__") and not _autoload.ERRORS:
            continue
        causes = "; ".join(f"{k}: {v}" for k, v in _autoload.ERRORS.items()) or "not patched"
        raise RuntimeError(
            f"noiseproof could not take hold of {module_name}.{name} in this version of "
            f"LLaMA-Factory ({causes}); run `noiseproof doctor`, and use llamafactory==0.9.5"
        ) from next(iter(_autoload.ERRORS.values()), None)


def _adopting(name: str) -> Callable[[ModuleType], None]:
    def patch(module: ModuleType) -> None:
        base = getattr(module, name)
        if hasattr(base, "__noiseproof__"):
            return

        def factory(*args: Any, **kwargs: Any) -> Any:
            trainer = base(*args, **kwargs)
            finetuning = kwargs.get("finetuning_args")
            block = getattr(finetuning, "noiseproof", None)
            if block is None:
                return trainer
            from noiseproof.trainer import adopt

            return adopt(trainer, block, getattr(finetuning, "_noiseproof_recipe", None))

        factory.__noiseproof__ = True  # type: ignore[attr-defined]
        setattr(module, name, factory)

    return patch


def _plot_parts(module: ModuleType) -> None:
    original = module.plot_loss
    if hasattr(original, "__noiseproof__"):
        return

    def plot_loss(save_dictionary: str, keys: Any = ("loss",), **kwargs: Any) -> Any:
        history = json.loads(Path(save_dictionary, "trainer_state.json").read_text())["log_history"]
        ours = sorted(
            {key for line in history for key in line if key.startswith("noiseproof/loss_")}
        )
        return original(save_dictionary, keys=[*keys, *ours], **kwargs)

    plot_loss.__noiseproof__ = True  # type: ignore[attr-defined]
    module.plot_loss = plot_loss  # type: ignore[attr-defined]


PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "llamafactory.hparams.finetuning_args": _take_our_key,
    "llamafactory.hparams.parser": _refuse,
    **{module: _adopting(name) for module, name in _TRAINERS.values()},
    "llamafactory.extras.ploting": _plot_parts,
}


def disabled() -> str | None:
    """Why the autoload is off in this process, None when it is on."""
    if os.environ.get("NOISEPROOF_DISABLE", "") not in ("", "0"):
        return "NOISEPROOF_DISABLE is set"
    if os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD") == "0":
        return "TORCH_DEVICE_BACKEND_AUTOLOAD=0"
    return None
