"""GuardMixin: what every adopted trainer has, an empty block included.

It stops a run on NaN or Inf before a weight is touched, logs the methods' loss parts, and writes
the receipt.
"""

from typing import Any

import torch
from transformers.trainer_callback import TrainerCallback

from noiseproof import receipt


class Meters:
    """Device-side sums between two reads; reading costs one synchronisation."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.bad: dict[str, torch.Tensor] = {}

    def add(self, name: str, value: torch.Tensor) -> None:
        """Add a detached scalar to the sum that is logged under `name`."""
        value = value.detach().double()
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def watch(self, name: str, value: torch.Tensor) -> None:
        """Remember whether `value` was ever NaN or Inf."""
        bad = ~torch.isfinite(value.detach()).all()
        self.bad[name] = self.bad[name] | bad if name in self.bad else bad


class _BeforeOptimizer(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Runs between backward and the optimizer, on every rank."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.trainer.noiseproof_check()


class GuardMixin:
    """The innermost mixin: right above the framework's own trainer."""

    noiseproof_meters: Meters
    noiseproof_logged_step: int

    def setup(self: Any) -> None:
        """Start the meters, hook the optimizer step, write the receipt."""
        self.noiseproof_meters = Meters()
        self.noiseproof_logged_step = 0
        self.noiseproof_found: dict[str, Any] = {}
        self.add_callback(_BeforeOptimizer(self))

    def compute_loss(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The framework's loss, watched while training."""
        result = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        if model.training:
            if "compute_loss" in vars(self):
                raise RuntimeError(
                    "something replaced this trainer's `compute_loss` after noiseproof took it; "
                    "remove the plugin that sets it on the instance"
                )
            loss = result[0] if isinstance(result, tuple) else result
            self.noiseproof_meters.watch("loss", loss)
        return result

    def noiseproof_check(self: Any) -> None:
        """Stop all ranks together when a watched part was not finite in this optimizer step."""
        meters: Meters = self.noiseproof_meters
        names = sorted(meters.bad, key=lambda name: (name == "loss", name))  # parts before the sum
        if not names:
            return
        flags = torch.stack([meters.bad[name] for name in names]).to(torch.float32)
        meters.bad = {}
        everywhere = self.accelerator.reduce(flags, reduction="sum").tolist()
        found = [name for name, count in zip(names, everywhere, strict=True) if count]
        if found:
            here = [name for name, bad in zip(names, flags.tolist(), strict=True) if bad]
            raise RuntimeError(
                f"noiseproof: {', '.join(found)} became NaN or Inf at optimizer step "
                f"{self.state.global_step + 1} (on this rank, {self.accelerator.process_index}: "
                f"{', '.join(here) or 'all finite'}). Stopped before the optimizer, so weights and "
                "checkpoints are sound; try bf16 instead of fp16, a lower learning rate, or less noise"
            )

    def log(self: Any, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the methods' parts to training logs, averaged over steps and ranks as `loss` is."""
        if "loss" in logs:
            logs.update(self.noiseproof_logs())
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def noiseproof_logs(self: Any) -> dict[str, float]:
        """Means since the last call; collective over all ranks."""
        meters: Meters = self.noiseproof_meters
        steps = max(1, self.state.global_step - self.noiseproof_logged_step)
        self.noiseproof_logged_step = self.state.global_step
        names = sorted(meters.sums)
        if not names:
            return {}
        sums = torch.stack([meters.sums[name] for name in names])
        meters.sums = {}
        means = (self.accelerator.reduce(sums, reduction="mean") / steps).tolist()
        return {f"noiseproof/{name}": mean for name, mean in zip(names, means, strict=True)}

    def noiseproof_prepare(self: Any) -> None:
        """For methods: change the model before it is wrapped; `super()` first or last."""

    def noiseproof_restore(self: Any) -> None:
        """For methods: leave nothing of ours on the model."""

    def train(self: Any, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """The framework's training between prepare and restore; the receipt at both ends."""
        self.noiseproof_logged_step = 0
        try:
            self.noiseproof_prepare()
            receipt.write(self, "started")
            result = super().train(  # type: ignore[misc]
                resume_from_checkpoint, *args, **kwargs
            )
            receipt.write(self, "finished")
            return result
        finally:
            self.noiseproof_restore()
