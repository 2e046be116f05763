"""adopt() on transformers' own Trainer."""

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import Trainer, TrainingArguments

from architectures import build
from noiseproof import adopt

BLOCK = {"noisefit": {"layers": [1, 2]}}


def rows(count=32):
    g = torch.Generator().manual_seed(3)
    out = []
    for i in range(count):
        ids = torch.randint(3, 61, (12 + i * 7 % 5,), generator=g).tolist()
        out.append({"input_ids": ids, "labels": [-100] * 4 + ids[4:]})
    return out


def collate(batch):
    length = max(len(row["input_ids"]) for row in batch)

    def padded(key, value):
        return torch.tensor([r[key] + [value] * (length - len(r[key])) for r in batch])

    ids = padded("input_ids", 0)
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "labels": padded("labels", -100),
    }


@pytest.fixture
def train(tmp_path):
    def go(block, batch=8, accumulate=1, checkpointing=False, trainer=Trainer, **keys):
        args = TrainingArguments(
            str(tmp_path / "out"),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulate,
            max_steps=4,
            logging_steps=1,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            learning_rate=1e-3,
            remove_unused_columns=False,
            disable_tqdm=True,
            gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": True} if checkpointing else None,
            eval_strategy="steps",
            eval_steps=2,
            **keys,
        )
        made = trainer(
            build("llama"),
            args,
            train_dataset=rows(),
            eval_dataset=rows(8),
            data_collator=collate,
        )
        made.folder = tmp_path / "out"
        if block is not None:
            adopt(made, block)
        made.train()
        return made

    return go


def losses(trainer, key="loss"):
    return [line[key] for line in trainer.state.log_history if key in line]


def test_an_empty_block_is_the_plain_trainer_to_the_bit(train):
    plain, empty = train(None), train({})
    assert losses(plain) == losses(empty) and losses(plain, "eval_loss") == losses(
        empty, "eval_loss"
    )
    for (name, a), b in zip(plain.model.named_parameters(), empty.model.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("batch", "accumulate", "checkpointing"), [(4, 2, False), (2, 4, False), (4, 2, True)]
)
def test_accumulation_and_checkpointing_change_nothing(train, batch, accumulate, checkpointing):
    whole = train(BLOCK)
    parts = train(BLOCK, batch, accumulate, checkpointing)
    errors = [a - b for a, b in zip(losses(whole), losses(parts), strict=True)]
    assert max(map(abs, errors)) <= 1e-6
    for key in ("noiseproof/loss_ce", "noiseproof/loss_soft", "noiseproof/noise_rel"):
        torch.testing.assert_close(losses(whole, key), losses(parts, key), rtol=1e-5, atol=1e-6)
    for (name, a), b in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5, msg=name)


def test_the_logged_parts_are_the_logged_loss(train):
    line = train(BLOCK, 4, 2).state.log_history[0]
    total = 0.5 * line["noiseproof/loss_ce"] + 0.5 * line["noiseproof/loss_soft"]
    total += 0.05 * line["noiseproof/loss_consistency"]
    assert total == pytest.approx(line["loss"], rel=1e-6)


def test_evaluation_is_without_noise_and_nothing_stays_on_the_model(train):
    class Twice(Trainer):
        def evaluate(self, *args, **kwargs):
            result = super().evaluate(*args, **kwargs)
            mine = [(self.model.eval()(**{k: v for k, v in collate(rows(8)).items()})).loss.item()]
            assert result["eval_loss"] == pytest.approx(mine[0], abs=0)
            return result

    trainer = train(BLOCK, trainer=Twice)
    assert "forward" not in vars(trainer.model)
    layers = trainer.model.model.layers
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in layers)


def test_rdrop_and_v1_run(train):
    rdrop = train({"noisefit": {"loss": "rdrop"}})
    assert min(losses(rdrop, "noiseproof/loss_consistency")) > 0
    assert rdrop.model.model.layers[0].self_attn.attention_dropout == 0.0  # put back
    assert min(losses(train({"noisefit": {"preset": "v1"}}), "noiseproof/loss_soft")) > 0


def test_auto_calibrates_and_writes_its_policy(train):
    trainer = train({"noisefit": {"calibration": {"max_ce_delta_ratio": 0.5}}})
    policy = json.loads((trainer.folder / "noisefit_policy.json").read_text())
    receipt = json.loads((trainer.folder / "noiseproof.json").read_text())
    chosen = [row["layer"] for row in policy["selected"]]
    assert receipt["found"]["noisefit"]["layers"] == chosen and chosen


def test_nan_stops_before_the_optimizer_with_the_parts_name(train):
    built = []

    class Poisoned(Trainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            built.append(self)
            self.model.model.layers[3].register_forward_hook(self.poison)

        def poison(self, _module, _args, h):
            noisy_rows = torch.arange(len(h)).view(-1, 1, 1) >= 8
            return h.masked_fill(noisy_rows, float("nan")) if self.state.global_step == 1 else h

    says = r"loss_consistency, loss_soft, loss became NaN or Inf at optimizer step 2"
    with pytest.raises(RuntimeError, match=says):
        train(BLOCK, trainer=Poisoned)
    assert all(torch.isfinite(p).all() for p in built[0].model.parameters())


def test_an_empty_block_stops_on_nan_too(train):
    class Poisoned(Trainer):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            poisoned = self.model.training and self.state.global_step == 2
            return loss * float("nan") if poisoned else loss

    with pytest.raises(RuntimeError, match="loss became NaN or Inf at optimizer step 3"):
        train({}, trainer=Poisoned)


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ({"noisefit": {"layers": [1, 9]}}, r"\[9\] lie beyond this model, which has 4"),
        ({"noisefit": {"layers": "snr", "num_noise_layers": 9}}, "more than this model's 4"),
        ({"noisefit": {"layer": [1]}}, "did you mean `layers`"),
    ],
)
def test_refusals(train, block, says):
    with pytest.raises(ValueError, match=says):
        train(block)


def test_other_losses_and_shadowed_methods_are_refused(train):
    class DPOTrainer(Trainer):
        pass

    with pytest.raises(ValueError, match="DPOTrainer has a loss of its own"):
        train(BLOCK, trainer=DPOTrainer)

    class Shadowed(Trainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.compute_loss = super().compute_loss

    with pytest.raises(ValueError, match="on the instance"):
        train(BLOCK, trainer=Shadowed)
    with pytest.raises(ValueError, match="label_smoothing_factor"):
        train(BLOCK, label_smoothing_factor=0.1)
