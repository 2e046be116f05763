"""One forward for all branches: layers up to the first noisy one are shared, then rows are tiled.

Row order after the first noisy layer: [clean; noisy 1; noisy 2], B rows each. Which branch a row
belongs to is its position, never a flag, so a checkpoint's recomputation sees the same thing.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from noiseproof import draws
from noiseproof.noisefit import noise

EMBEDDING = -1  # "first noisy layer" of losses whose branches part before the first layer


@dataclass
class Packed:
    """What the hooks on one model need to know; its fields are set anew in every forward.

    scales: noise scale of each noisy layer, ascending. keys: (seed, optimizer step).
    row: global number of the batch's first row. active: set at every entry of the patched forward
    and never at its exit, because the backward recomputes checkpointed layers under it.
    """

    scales: dict[int, float]
    clean: bool
    noisy: int
    noise_std: float | None = None  # preset v1
    stateless: bool = True
    first: int = 0
    keys: tuple[int, int] = (0, 0)
    row: int = 0
    batch: int = 0
    mask_BS: torch.Tensor | None = None
    active: bool = False
    calls: dict[int, int] = field(default_factory=dict)
    power: dict[int, torch.Tensor] = field(default_factory=dict)  # layer -> [|delta|^2, |h|^2]

    @property
    def groups(self) -> int:
        """G, the number of branches."""
        return self.noisy + self.clean

    def start(self, batch: int, mask_BS: torch.Tensor | None) -> None:
        """Begin a packed forward of `batch` rows; `mask_BS` marks real tokens, None = all."""
        self.active, self.batch, self.mask_BS = True, batch, mask_BS

    def gauss(self, layer: int, h_BSH: torch.Tensor, branch: int) -> torch.Tensor:
        """Standard normal fp32 [B, S, H] of a noisy branch."""
        if not self.stateless:
            return torch.randn(h_BSH.shape, dtype=torch.float32, device=h_BSH.device)
        keys = [draws.key(*self.keys, layer, branch, self.row + i) for i in range(self.batch)]
        return draws.normal_rows(keys, h_BSH.shape[1], h_BSH.shape[2], h_BSH.device)

    def tile(self, value: Any) -> Any:
        """Repeat whatever has one entry per row G times along its batch dimension."""
        if isinstance(value, tuple | list):
            return type(value)(self.tile(item) for item in value)
        if not isinstance(value, torch.Tensor) or value.dim() < 2 or self.groups == 1:
            return value
        axis = 1 if value.dim() == 3 and value.shape[0] == 3 != value.shape[1] == self.batch else 0
        if value.shape[axis] != self.batch or self.batch == 1:
            return value  # a batch dimension of one broadcasts
        return value.repeat(*(self.groups if i == axis else 1 for i in range(value.dim())))

    def add_noise(self, layer: int, h: torch.Tensor) -> torch.Tensor:
        """The noisy layer's output with its noise, [G*B, S, H]."""
        if self.first == layer:
            shared = self._amplitude(h)  # all branches start from the same hidden states
            noisy = [self._noised(layer, h, branch, shared) for branch in range(self.noisy)]
            rows = [h, *noisy] if self.clean else noisy
        else:
            parts = list(torch.split(h, self.batch))
            rows = parts[: int(self.clean)]
            for branch, part in enumerate(parts[int(self.clean) :]):
                rows.append(self._noised(layer, part, branch, self._amplitude(part)))
        self.calls[layer] = self.calls.get(layer, 0) + 1
        return torch.cat(rows)

    def _amplitude(self, h_BSH: torch.Tensor) -> torch.Tensor:
        if self.noise_std is not None:
            return noise.amplitude_v1(h_BSH, self.noise_std)
        with torch.no_grad():
            return noise.amplitude_v2(h_BSH, self.mask_BS)

    def _noised(
        self, layer: int, h_BSH: torch.Tensor, branch: int, amplitude: torch.Tensor
    ) -> torch.Tensor:
        with torch.no_grad():
            gauss = self.gauss(layer, h_BSH, branch)
        if self.noise_std is None:
            with torch.no_grad():
                delta = gauss.mul_(amplitude).mul_(self.scales[layer])
        else:
            delta = amplitude * gauss
        with torch.no_grad():
            token = torch.stack([delta.square().sum(-1), h_BSH.float().square().sum(-1)])
            if self.mask_BS is not None:
                token = token * self.mask_BS
            sums = token.sum((1, 2), dtype=torch.float64)
            self.power[layer] = self.power.get(layer, torch.zeros_like(sums)) + sums
        return (h_BSH.float() + delta).to(h_BSH.dtype)


def hook(layers: list[nn.Module], state: Packed) -> list[Any]:
    """Register the hooks on the decoder layers; returns their handles."""
    handles: list[Any] = []

    def after(index: int) -> Any:
        def hooked(_module: nn.Module, _args: Any, output: Any) -> Any:
            if not state.active:
                return None
            if isinstance(output, tuple):  # falcon, bloom, and everything before transformers 5
                return (state.add_noise(index, output[0]), *output[1:])
            return state.add_noise(index, output)

        return hooked

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not state.active:
            return None
        tiled = {
            name: value if name in ("hidden_states", "past_key_values") else state.tile(value)
            for name, value in kwargs.items()
        }
        return (args[:1] + tuple(map(state.tile, args[1:])), tiled)

    for index, layer in enumerate(layers):
        if index > state.first and state.first != EMBEDDING:
            handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        if index in state.scales:
            handles.append(layer.register_forward_hook(after(index)))
    return handles
