"""What every test shares: one torch thread each, repeatable hypothesis, and the real data where it is at hand."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Before torch is imported, and inherited by the processes that tests start: tests run side by side on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test downloads anything

import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]
SMOLLM2 = REPOSITORY / "models" / "smollm2-135m-instruct"
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

torch.set_num_threads(1)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup switches it off, here and in the processes that tests start
settings.register_profile("bitgen", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("bitgen")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; a test that asks for it is skipped where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data is not here: ../shared/data, beside the repository, does not exist")
    return SHARED_DATA


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of a small real language model; a test that asks for it is skipped where it is missing."""
    if not (SMOLLM2 / "config.json").is_file():
        pytest.skip("the real weights are not here: run make smollm2")
    return SMOLLM2
