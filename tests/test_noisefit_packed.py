"""The packed forward and chunked head against separate full forwards with the same noise."""

import pytest

torch = pytest.importorskip("torch")

import reference
from architectures import MODELS, batch, build
from noiseproof import hooks
from noiseproof.noisefit import noise
from noiseproof.noisefit.forward import PackedForward, check_head
from noiseproof.noisefit.loss import LossSpec
from noiseproof.noisefit.packed import EMBEDDING, Packed, hook

BRANCHES = {
    "full": (True, 2), "ce_kl": (True, 1), "ce_noisy": (False, 1),
    "kl_only": (True, 1), "consistency_only": (False, 2),
}  # fmt: skip
WEIGHTS = {
    "full": (0.5, 0.5, 0.3), "ce_kl": (0.5, 0.5, 0), "ce_noisy": (1, 0, 0),
    "kl_only": (0, 1, 0), "consistency_only": (0, 0, 1),
}  # fmt: skip
LAYERS = {1: 0.4, 3: 0.3}


def gradients(model):
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def checkpointing(model, kind):
    if kind != "off":
        model.gradient_checkpointing_enable({"use_reentrant": kind == "reentrant"})
        if kind == "reentrant":
            model.enable_input_require_grads()


def packed_step(model, data, name, t, v1=False, chunk=5, items=None):
    clean, noisy = BRANCHES[name]
    state = Packed(dict(LAYERS), clean, noisy, noise_std=0.3 if v1 else None, first=min(LAYERS))
    state.keys, state.row = (7, 3), 4
    spec = LossSpec(name, WEIGHTS[name], t, v1)
    forward = PackedForward(model, state, spec, chunk)
    forward.install()
    handles = hook(hooks.decoder_layers(model), state)
    forward.armed = True
    model.train()
    extra = {} if items is None else {"num_items_in_batch": items}
    out = model(**data, **extra)
    out.loss.backward()
    for handle in handles:
        handle.remove()
    forward.remove()
    return out.loss.detach(), gradients(model), state


def separate_forwards(model, data, name, t, v1=False):
    """One full forward per branch, noise by hooks of the test's own, full logits, plain autograd."""
    clean, noisy = BRANCHES[name]
    keys = Packed(dict(LAYERS), clean, noisy)
    keys.keys, keys.row, keys.batch = (7, 3), 4, len(data["input_ids"])
    layers = hooks.decoder_layers(model)
    passed = {k: v for k, v in data.items() if k != "labels"}
    logits, router = [], None
    for branch in [None] * clean + list(range(noisy)):
        handles = []
        for layer, scale in LAYERS.items() if branch is not None else ():

            def add(_m, _a, out, layer=layer, scale=scale, branch=branch):
                h = out[0] if isinstance(out, tuple) else out
                z = keys.gauss(layer, h, branch)
                if v1:
                    noisy_h = h + noise.amplitude_v1(h, 0.3) * z
                else:
                    noisy_h = h + noise.adaptive_noise(h, z, scale, data["attention_mask"]).detach()
                return (noisy_h, *out[1:]) if isinstance(out, tuple) else noisy_h

            handles.append(layers[layer].register_forward_hook(add))
        model.train()
        if branch is None and getattr(model.config, "output_router_logits", False):
            result = model(**data, use_cache=False)
            router = result.aux_loss * model.router_aux_loss_coef
        else:
            result = model(**passed, use_cache=False)
        logits.append(result.logits)
        for handle in handles:
            handle.remove()
    w = WEIGHTS[name]
    loss = reference.noisefit_loss(logits, data["labels"], name, w[0], w[2], t, v1=v1)
    if router is not None:
        loss = loss + router
    loss.backward()
    return loss.detach(), gradients(model)


def assert_same(ours, theirs, tolerance=2e-6):
    loss, grads, *_ = ours
    expected, expected_grads = theirs
    assert abs(float(loss) - float(expected)) <= 1e-6 * max(1.0, abs(float(expected)))
    assert grads.keys() == expected_grads.keys()
    for name, grad in expected_grads.items():
        if grad.norm() < 1e-7:
            continue
        error = (grads[name] - grad).norm() / grad.norm()
        assert error <= tolerance, (name, float(error))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_packed_forward_equals_three_forwards(name, attention):
    model, data = build(name, attention), batch()
    check_head(model)
    expected = separate_forwards(model, data, "full", 1.7)
    for kind in ("off", "non_reentrant", "reentrant"):
        checkpointing(model, kind)
        if name == "mixtral":  # transformers drops the router's gradient in reentrant checkpoints
            expected = separate_forwards(model, data, "full", 1.7)
        assert_same(packed_step(model, data, "full", 1.7), expected)


@pytest.mark.parametrize("kind", ["off", "non_reentrant", "reentrant"])
def test_preset_v1_lets_the_gradient_through_the_amplitude(kind):
    model, data = build("llama"), batch()
    expected = separate_forwards(model, data, "full", 1.0, v1=True)
    checkpointing(model, kind)
    assert_same(packed_step(model, data, "full", 1.0, v1=True), expected)


@pytest.mark.parametrize("name", ["ce_kl", "ce_noisy", "kl_only", "consistency_only"])
def test_other_losses(name):
    model, data = build("llama"), batch()
    expected = separate_forwards(model, data, name, 1.3)
    assert_same(packed_step(model, data, name, 1.3), expected)


def test_one_row_and_any_chunk_give_the_same():
    model, data = build("llama"), batch(rows=1)
    expected = separate_forwards(model, data, "full", 1.0)
    for chunk in (1, 4, 1000):
        assert_same(packed_step(model, data, "full", 1.0, chunk=chunk), expected)


def test_a_given_denominator_replaces_the_local_count():
    model, data = build("llama"), batch()
    count = int((data["labels"][:, 1:] != -100).sum())
    loss, grads, _ = packed_step(model, data, "full", 1.0)
    scaled, scaled_grads, _ = packed_step(model, data, "full", 1.0, items=torch.tensor(4 * count))
    torch.testing.assert_close(scaled * 4, loss)
    for name in grads:
        torch.testing.assert_close(scaled_grads[name] * 4, grads[name], rtol=1e-4, atol=1e-7)


def test_alpha_one_is_the_models_own_loss():
    model, data = build("llama"), batch()
    model.train()
    plain = model(**data).loss
    plain.backward()
    expected = (plain.detach(), gradients(model))
    state = Packed({1: 0.0}, clean=True, noisy=2, first=1)
    forward = PackedForward(model, state, LossSpec("full", (1.0, 0.0, 0.0)), 5)
    forward.install()
    handles = hook(hooks.decoder_layers(model), state)
    forward.armed = True
    out = model(**data)
    out.loss.backward()
    assert forward.parts is not None
    assert float(forward.parts[1]) == 0.0 and float(forward.parts[2]) == 0.0  # zero noise
    for handle in handles:
        handle.remove()
    forward.remove()
    assert_same((out.loss.detach(), gradients(model)), expected)


def test_no_supervised_token_gives_a_zero_for_every_parameter():
    model, data = build("gpt2"), batch()
    data["labels"] = torch.full_like(data["labels"], -100)
    loss, grads, _ = packed_step(model, data, "full", 1.0)
    assert float(loss) == 0.0
    assert grads.keys() == {name for name, _ in model.named_parameters()}
    assert all(float(grad.abs().max()) == 0.0 for grad in grads.values())


def test_masked_targets_change_nothing():
    model, data = build("llama"), batch()
    loss, grads, _ = packed_step(model, data, "full", 1.0)
    data["input_ids"][1, -4:] = 9  # padding of the second row: masked in attention and labels
    again, grads_again, _ = packed_step(model, data, "full", 1.0)
    assert torch.equal(loss, again)
    assert all(torch.equal(grads[name], grads_again[name]) for name in grads)


def test_frozen_head_and_biased_head():
    model, data = build("phi"), batch()
    model.lm_head.requires_grad_(False)
    expected = separate_forwards(model, data, "full", 1.0)
    assert "lm_head.weight" not in expected[1]
    assert_same(packed_step(model, data, "full", 1.0), expected)
    model.lm_head.requires_grad_(True)
    assert model.lm_head.bias is not None
    assert_same(packed_step(model, data, "full", 1.0), separate_forwards(model, data, "full", 1.0))


def test_branches_that_part_at_the_embedding():
    model, data = build("llama"), batch()
    state = Packed({}, clean=False, noisy=2, first=EMBEDDING)
    forward = PackedForward(model, state, LossSpec("rdrop", (1.0, 0.0, 1.0)), 5)
    forward.install()
    forward.armed = True
    model.train()
    out = model(**data)
    forward.remove()
    torch.testing.assert_close(out.loss, model(**data).loss)  # without dropout both copies agree
    assert float(forward.parts[2]) == 0.0


def test_evaluation_and_unarmed_calls_are_the_models_own():
    model, data = build("llama"), batch()
    model.eval()
    expected = model(**data)
    state = Packed(dict(LAYERS), clean=True, noisy=2, first=min(LAYERS))
    forward = PackedForward(model, state, LossSpec("full", (0.5, 0.5, 0.1)), 5)
    forward.install()
    handles = hook(hooks.decoder_layers(model), state)
    forward.armed = True
    evaluated = model(**data)
    forward.armed = False
    model.train()
    unarmed = model(**data)
    for handle in handles:
        handle.remove()
    forward.remove()
    assert torch.equal(evaluated.loss, expected.loss) and torch.equal(unarmed.loss, expected.loss)
    assert "forward" not in vars(model) and not state.calls


def test_a_head_that_is_not_understood_is_refused():
    model = build("llama")
    own = model.forward

    def forward(*args, **kwargs):
        out = own(*args, **kwargs)
        out.logits = out.logits * 2 + 1
        return out

    model.forward = forward
    with pytest.raises(ValueError, match="would be wrong"):
        check_head(model)
