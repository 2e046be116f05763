"""The adaptive noise and the stateless draws."""

import math

import pytest

torch = pytest.importorskip("torch")

import reference
from noiseproof import draws
from noiseproof.noisefit import noise


@pytest.mark.parametrize("size", [7, 8])  # odd and even: the lower of two middle values
def test_equals_the_reference(size):
    g = torch.Generator().manual_seed(0)
    h = torch.randn(2, 5, size, generator=g) * 3 + 1
    z = torch.randn(2, 5, size, generator=g)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    delta = noise.adaptive_noise(h, z, 0.3, mask)
    for row in range(2):
        expected = reference.noisefit_delta(h[row], z[row], 0.3, mask[row])
        torch.testing.assert_close(delta[row].double(), expected, rtol=1e-5, atol=1e-6)
    everything = noise.adaptive_noise(h, z, 0.3, None)
    torch.testing.assert_close(
        everything[1].double(), reference.noisefit_delta(h[1], z[1], 0.3), rtol=1e-5, atol=1e-6
    )


def test_v1_squares_its_scale_and_averages_over_all_rows():
    g = torch.Generator().manual_seed(1)
    h = torch.randn(2, 3, 6, generator=g, dtype=torch.float64)
    z = torch.randn(2, 3, 6, generator=g, dtype=torch.float64)
    mean_var = float(h.var(dim=-1).mean())
    for row in range(2):
        expected = reference.noisefit_delta(
            h[row], z[row], float(h.std()) * 0.2**2, mean_var=mean_var
        )
        ours = (noise.amplitude_v1(h, 0.2) * z)[row].double()
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-7)


def test_hand_made_vector():
    h = torch.tensor([[[0.0, 1.0, 2.0, 10.0]]])  # lower median 1, deviations 1 0 1 9, MAD 1
    delta = noise.adaptive_noise(h, torch.ones_like(h), 1.0, None)
    # mean(v) = v, so f = e^1; w = exp(-0.1 dev)
    expected = [math.e * math.exp(-0.1 * d) for d in (1, 0, 1, 9)]
    torch.testing.assert_close(delta[0, 0], torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_constant_vector_and_fp16_stay_finite():
    constant = noise.adaptive_noise(torch.full((1, 2, 8), 3.0), torch.ones(1, 2, 8), 1.0, None)
    assert torch.isfinite(constant).all() and float(constant.abs().max()) > 0
    large = (torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0)) * 1e4).half()
    assert torch.isfinite(noise.adaptive_noise(large, torch.ones(1, 4, 16), 1.0, None)).all()


def test_a_rows_noise_does_not_depend_on_its_batch_mates():
    g = torch.Generator().manual_seed(2)
    h, z = torch.randn(3, 4, 8, generator=g), torch.randn(3, 4, 8, generator=g)
    together = noise.adaptive_noise(h, z, 1.0, None)
    alone = noise.adaptive_noise(h[1:2], z[1:2], 1.0, None)
    torch.testing.assert_close(together[1:2], alone)


def test_draws_are_a_function_of_their_key():
    device = torch.device("cpu")
    keys = [draws.key(0, 1, 2, 3, row) for row in range(4)]
    assert len(set(keys)) == 4 and all(0 <= k < 2**63 for k in keys)
    state = torch.get_rng_state()
    both = draws.normal_rows(keys, 5, 8, device)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(draws.normal_rows(keys[2:], 5, 8, device), both[2:])


def test_longer_padding_only_appends():
    for width in (8, 33):
        short = draws.normal_rows([5], 6, width, torch.device("cpu"))
        long = draws.normal_rows([5], 9, width, torch.device("cpu"))
        assert torch.equal(short[0, :5], long[0, :5])


def test_draws_are_standard_normal():
    x = draws.normal_rows(list(range(10)), 100, 100, torch.device("cpu"))
    n = x.numel()
    assert abs(float(x.mean())) < 4 / math.sqrt(n)
    assert abs(float(x.var()) - 1) < 4 * math.sqrt(2 / n)
