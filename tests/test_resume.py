"""A run that is killed and resumed ends with the same weights, bit for bit, as a run that was never disturbed."""
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from safetune.sample import sample_ner
from safetune.tuning import last_checkpoint, new_encoder

PROCESS = Path(__file__).with_name("training_process.py")


def train(out, encoder, kill_at=0, where="step", mode="fresh"):
    result = subprocess.run([sys.executable, PROCESS, out, encoder, str(kill_at), where, mode], capture_output=True, text=True, timeout=300)
    assert result.returncode == (-signal.SIGKILL if kill_at else 0), result.stderr[-3000:]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    "The encoder, and the weights of an undisturbed run."
    folder = tmp_path_factory.mktemp("unbroken")
    encoder = new_encoder(sample_ner(n=200, seed=0)["train"]["tokens"], folder / "encoder", vocab_size=500, hidden=32, heads=2)
    train(folder, encoder)
    return encoder, (folder / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("where", ["step", "save"])
def test_killed_and_resumed(unbroken, tmp_path, where):
    encoder, weights = unbroken
    kill_at = random.SystemRandom().randint(5, 16)  # any step: printed by pytest on failure
    train(tmp_path, encoder, kill_at, where)
    checkpoint = last_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None and int(checkpoint.name.split("-")[1]) <= kill_at
    train(tmp_path, encoder, mode="resume")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights, f"killed at {where} {kill_at}"
