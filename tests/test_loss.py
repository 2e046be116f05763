"""The closed form against autograd and the float64 reference."""

import pytest

torch = pytest.importorskip("torch")

import reference
from noiseproof.noisefit import fused
from noiseproof.noisefit.loss import LossSpec, hybrid_parts


@pytest.mark.parametrize("t", [1.0, 1.7])
@pytest.mark.parametrize("name", ["full", "ce_kl"])
def test_closed_form_equals_autograd_and_reference(name, t):
    g = torch.Generator().manual_seed(0)
    branches = 3 if name == "full" else 2
    z = torch.randn(branches, 1, 6, 11, generator=g, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([[-100, -100, 4, 1, -100, 7]])
    lam = 0.3 if name == "full" else 0.0
    spec = LossSpec(name, (0.4, 0.6, lam), t)
    expected = reference.noisefit_loss(list(z), labels, name, 0.4, lam, t)
    expected.backward()
    shift = torch.nn.functional.pad(labels, (0, 1), value=-100)[0, 1:]
    weight = (shift != -100).double() / 3
    given = (z.detach()[:, 0], shift.clamp(min=0), weight, weight, spec)
    parts, gradient = fused.parts_and_gradient(*given)
    weights = torch.tensor(spec.weights, dtype=torch.float64)
    torch.testing.assert_close((weights * parts).sum(), expected.detach())
    torch.testing.assert_close(gradient, z.grad[:, 0])
    torch.testing.assert_close(parts, hybrid_parts(*given).detach(), rtol=1e-5, atol=1e-6)
