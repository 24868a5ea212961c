"""Real fine-tuning, and the parts of the Tuner that no story tells."""
import json
import math
import subprocess
import sys

import pytest
import torch
from datasets import DatasetDict

from safetune.data import InputError, load_data
from safetune.sample import sample_ner
from safetune.tasks import get_task, load_model, load_tokenizer
from safetune.tuning import Settings, Tuner, choose_precision, learn_pieces, make_settings, new_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    "A tiny encoder with random weights."
    return new_encoder(sample_ner(n=200, seed=0)["train"]["tokens"], tmp_path_factory.mktemp("encoder"), vocab_size=400, hidden=32, heads=2)


def test_the_vocabulary_is_the_same_in_every_process():
    "tokenizers numbers the letters inside words in an order that differs between processes."
    script = ("import json; from safetune.sample import sample_ner; from safetune.tuning import learn_pieces; "
              "print(json.dumps(learn_pieces([' '.join(t) for t in sample_ner(n=100, seed=0)['train']['tokens']], 300)))")
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    texts = [" ".join(tokens) for tokens in sample_ner(n=100, seed=0)["train"]["tokens"]]
    assert json.loads(other.stdout.splitlines()[-1]) == learn_pieces(texts, 300)


def test_special_pieces_of_the_learner_are_ordinary_text(tmp_path):
    folder = new_encoder(["Hello hello, worldly world"] * 3, tmp_path, vocab_size=60, hidden=16, heads=2)
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer.all_special_tokens) == 5 and "##o" not in tokenizer.tokenize("a ##o b")


def test_minilm_learns_from_wnut17(wnut17, minilm):
    "An eighth of the training split, three epochs: far from the full figure, but far above nothing."
    data = load_data(wnut17)
    steps = {"train": 8, "validation": 10, "test": 10}
    part = DatasetDict({split: data[split].select(range(0, len(data[split]), step)) for split, step in steps.items()})
    tuner = Tuner(part, minilm, progress=False)
    history = tuner.fit(epochs=3, lr=2e-4)
    assert history.validation_loss.min() < 0.9 * history.validation_loss.iloc[0] and history.f1.max() > 0.15
    assert tuner.evaluate("test")["f1"] > 0.1


def test_the_best_epoch_is_restored(encoder):
    tuner = Tuner(sample_ner(n=200, seed=0), encoder, progress=False)
    history = tuner.fit(epochs=4, lr=5e-3)
    assert math.isclose(tuner.evaluate("validation")["f1"], history.f1.max(), abs_tol=1e-9)


def test_same_seed_same_weights_other_seed_other_weights(encoder):
    def weights(seed):
        tuner = Tuner(sample_ner(n=100, seed=0), encoder, progress=False)
        tuner.fit(epochs=1, seed=seed)
        return torch.cat([p.flatten() for p in tuner.model.parameters()])
    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_tensorboard_writes_beside_the_checkpoints(encoder, tmp_path):
    Tuner(sample_ner(n=60, seed=0), encoder, out=tmp_path / "checkpoints", progress=False).fit(epochs=1, loggers=("tensorboard",))
    assert list((tmp_path / "runs").glob("events.*"))


def test_weights_come_from_safetensors_only(encoder, tmp_path):
    data = sample_ner(n=60, seed=0)
    tuner = Tuner(data, encoder, progress=False)
    tuner.fit(epochs=1)
    tuner.save(tmp_path)
    torch.save(tuner.model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no model can be loaded"):
        load_model(str(tmp_path), tuner.task)


def test_a_label_only_in_test_is_told_and_scored(encoder, caplog):
    rows = load_data([{"tokens": ["Ada", "sang"], "tags": ["B-PER", "O"]}] * 20)["train"]
    other = load_data([{"tokens": ["Rome", "fell"], "tags": ["B-LOC", "O"]}])["train"]
    with caplog.at_level("WARNING", logger="safetune"):
        tuner = Tuner(DatasetDict(train=rows, validation=rows.select(range(3)), test=other), encoder, progress=False)
    assert "no training row has the label(s) LOC" in caplog.text
    tuner.fit(epochs=1)
    assert tuner.evaluate("test")["per_type"]["LOC"]["support"] == 1


@pytest.mark.parametrize("setting", [{"epochs": 0}, {"lr": 0}, {"warmup": 1}, {"dropout": 1}, {"patience": 0}, {"schedule": "zigzag"}, {"precision": "int8"}])
def test_senseless_settings_are_refused(setting):
    with pytest.raises(InputError, match=f"the setting {next(iter(setting))} cannot be"):
        make_settings(**setting)


def test_precision_follows_the_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)  # a T4: emulated only
    assert choose_precision("auto") == {"bf16": False, "fp16": True}
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert choose_precision("auto") == {"bf16": True, "fp16": False}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_precision("auto") == {"bf16": False, "fp16": False}


def test_settings_survive_json():
    assert Settings(**json.loads(json.dumps(Settings().__dict__ | {"loggers": []}))).lr == 5e-5


def test_every_task_has_a_head_in_transformers():
    import transformers
    from safetune.losses import LOSSES
    from safetune.tasks import TASKS
    for name in TASKS:
        task = get_task(name)
        assert hasattr(transformers, task.head) and task.loss in LOSSES
