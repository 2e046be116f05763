"""NoiseFitMixin: one packed forward per micro-batch in place of the framework's plain one."""

import logging
import math
from typing import Any

import torch

from noiseproof import hooks
from noiseproof.guard import GuardMixin
from noiseproof.noisefit import choose, dropout
from noiseproof.noisefit.config import NoiseFitConfig
from noiseproof.noisefit.forward import PackedForward, check_head
from noiseproof.noisefit.loss import PARTS, LossSpec
from noiseproof.noisefit.packed import EMBEDDING, Packed, hook

logger = logging.getLogger(__name__)
_OTHER_LOSSES = (
    "DPO",
    "KTO",
    "ORPO",
    "CPO",
    "GRPO",
    "PPO",
    "Reward",
    "Pairwise",
    "KD",
    "Diffusion",
)


class NoiseFitMixin(GuardMixin):
    """Owns the training loss; evaluation and generation are the framework's own."""

    def setup(self: Any) -> None:
        """Refuse what cannot work, before a step is spent."""
        config: NoiseFitConfig = self.noiseproof.noisefit
        names = [base.__name__ for base in type(self).__mro__[1:]]
        for name in names:
            if name.endswith("Trainer") and name.startswith(_OTHER_LOSSES):
                raise ValueError(
                    f"noiseproof.noisefit replaces the supervised loss, but {name} has a loss of its "
                    "own; remove the block, or use supervised fine-tuning"
                )
        if self.compute_loss_func is not None or self.label_smoother is not None:
            raise ValueError(
                "noiseproof.noisefit replaces the loss, but this trainer has another one set; "
                "remove label_smoothing_factor and any loss option (dft, eaft, asft)"
            )
        if self.args.n_gpu > 1:
            raise ValueError(
                "noiseproof.noisefit does not run under nn.DataParallel; start one process per GPU "
                "with torchrun or accelerate launch"
            )
        causal_lm = hooks.causal_lm_of(self.model)
        choose.check_indices(config, len(hooks.decoder_layers(causal_lm)))
        self._noisefit: _Run | None = None

    def noiseproof_prepare(self: Any) -> None:
        """Choose the layers, hook them and patch the forward; before accelerate wraps the model."""
        super().noiseproof_prepare()
        self._noisefit = _Run(self, self.noiseproof.noisefit)

    def noiseproof_restore(self: Any) -> None:
        """Take hooks and patch off again."""
        if self._noisefit is not None:
            self._noisefit.remove()
        super().noiseproof_restore()

    def compute_loss(
        self: Any,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        """The hybrid loss while training, the framework's loss otherwise."""
        run: _Run | None = self._noisefit
        passed = {"return_outputs": return_outputs, "num_items_in_batch": num_items_in_batch}
        if run is None or not model.training:
            return super().compute_loss(model, inputs, **passed, **kwargs)
        run.arm(self)
        try:
            result = super().compute_loss(model, inputs, **passed, **kwargs)
        finally:
            run.forward.armed = False
        if run.forward.total is None:
            raise RuntimeError(
                "noiseproof.noisefit is on, but the model was called without labels, so its loss was "
                "never computed; is there another plugin that replaces the loss?"
            )
        self._noisefit_meter(result[0] if return_outputs else result, num_items_in_batch)
        return result

    def _noisefit_meter(self: Any, loss: torch.Tensor, items: Any) -> None:
        """Put the parts on the scale on which transformers logs `loss`."""
        forward: PackedForward = self._noisefit.forward
        assert forward.parts is not None and forward.total is not None
        scale = 1.0
        # transformers multiplies by the processes (trainer.py, compute_loss) ...
        if (
            self.args.average_tokens_across_devices
            and self.model_accepts_loss_kwargs
            and items is not None
        ):
            scale *= self.accelerator.num_processes
        # ... and divides by the accumulation steps (training_step)
        if not self.model_accepts_loss_kwargs or items is None:
            scale /= self.current_gradient_accumulation_steps
        for name, part in zip(PARTS, forward.parts, strict=True):
            self.noiseproof_meters.watch(f"loss_{name}", part)
            self.noiseproof_meters.add(f"loss_{name}", part * scale)

    def noiseproof_check(self: Any) -> None:
        """Also: noise that was asked for must have been added."""
        if self._noisefit is not None:
            self._noisefit.check_calls()
        super().noiseproof_check()

    def noiseproof_logs(self: Any) -> dict[str, float]:
        """Adds the relative noise per layer."""
        logs: dict[str, float] = super().noiseproof_logs()
        if self._noisefit is not None:
            logs |= self._noisefit.relative_noise(self.accelerator)
        return logs


class _Run:
    """What lives from the beginning to the end of one training."""

    def __init__(self, trainer: Any, config: NoiseFitConfig) -> None:
        causal_lm: Any = hooks.causal_lm_of(trainer.model)
        check_head(causal_lm)
        layers = hooks.decoder_layers(causal_lm)
        clean, noisy = config.branches
        scales, policy = choose.scales(trainer, causal_lm, config)
        hidden = causal_lm.get_output_embeddings().weight.shape[-1]
        self.state = Packed(
            scales=scales,
            clean=clean,
            noisy=noisy,
            noise_std=config.std if config.preset == "v1" else None,
            stateless=config.noise_rng == "stateless",
            first=min(scales) if scales and not choose.must_pack_early(causal_lm) else EMBEDDING,
        )
        self.forward = PackedForward(causal_lm, self.state, _spec(config), config.chunk_size)
        self.forward.install()
        self.handles = hook(layers, self.state)
        self.undo_dropout = dropout.switch_on(causal_lm, config) if config.loss == "rdrop" else None
        self.step, self.micro = -1, 0
        self.seed = config.seed
        trainer.noiseproof_found["noisefit"] = {
            "layers": sorted(scales),
            "relative_scale": [scales[layer] * math.sqrt(hidden) for layer in sorted(scales)],
            "branches": self.state.groups,
            **({"policy": policy} if policy else {}),
        }
        where = f"layers {sorted(scales)} of {len(layers)}" if scales else "dropout only"
        logger.warning(
            "noiseproof: noisefit %s %s on %s, %s, %d rows per row of the batch after them",
            config.preset,
            config.loss,
            type(trainer).__name__,
            where,
            self.state.groups,
        )

    def arm(self, trainer: Any) -> None:
        """Fix the key of this micro-batch's draws, and let the next forward be a packed one."""
        step = trainer.state.global_step
        self.micro = self.micro + 1 if step == self.step else 0
        self.step = step
        place = self.micro * trainer.accelerator.num_processes + trainer.accelerator.process_index
        self.state.keys = (self.seed, step)
        self.state.row = place * trainer.args.per_device_train_batch_size
        self.forward.total = None
        self.forward.armed = True

    def check_calls(self) -> None:
        """Every noisy layer was reached since the last optimizer step."""
        silent = [layer for layer in self.state.scales if not self.state.calls.get(layer)]
        self.state.calls.clear()
        if silent:
            raise RuntimeError(
                f"noiseproof.noisefit: the hooks of layers {silent} were never called in a training "
                "step, so no noise was added; torch.compile or another plugin bypasses them"
            )

    def relative_noise(self, accelerator: Any) -> dict[str, float]:
        """||delta|| / ||h|| per noisy layer since the last call, and over all of them."""
        if not self.state.power:
            return {}
        names = sorted(self.state.power)
        sums = accelerator.reduce(
            torch.stack([self.state.power[n] for n in names]), reduction="sum"
        )
        self.state.power = {}
        ratio = (sums[:, 0] / sums[:, 1]).sqrt()
        logs = {"noiseproof/noise_rel": float(ratio.mean())}
        return logs | {
            f"noiseproof/noise_rel/{name}": value
            for name, value in zip(names, ratio.tolist(), strict=True)
        }

    def remove(self) -> None:
        """Leave nothing on the model."""
        for handle in self.handles:
            handle.remove()
        self.forward.remove()
        if self.undo_dropout is not None:
            self.undo_dropout()


def _spec(config: NoiseFitConfig) -> LossSpec:
    alpha = config.hybrid_loss_alpha
    weights = {
        "full": (alpha, 1 - alpha, config.lam),
        "ce_kl": (alpha, 1 - alpha, 0.0),
        "ce_noisy": (1.0, 0.0, 0.0),
        "kl_only": (0.0, 1.0, 0.0),
        "consistency_only": (0.0, 0.0, 1.0),
        "rdrop": (1.0, 0.0, config.rdrop.alpha if config.rdrop else 1.0),
    }[config.loss]
    return LossSpec(config.loss, weights, config.temperature, config.preset == "v1")
