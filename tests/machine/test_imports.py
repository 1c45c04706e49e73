"""What is imported only where it is needed: each of these libraries takes half a second or more to load."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "src"
SLOW = ("peft", "bitsandbytes", "matplotlib", "scipy.stats", "datasets", "tensorboard")


def test_the_list_names_installed_libraries() -> None:
    # A library that is not there is never loaded, so that the tests below would hold for a wrong name.
    assert all(importlib.util.find_spec(name) for name in SLOW if name != "bitsandbytes")


@pytest.mark.parametrize(
    "name", ["bitgen.api", "bitgen.commands.caption", "bitgen.commands.memory", "bitgen.demo.tabs.page"]
)
def test_what_opens_models_is_imported_without_libraries_that_it_may_not_need(name: str) -> None:
    if name.startswith("bitgen.demo"):
        pytest.importorskip("gradio")
    code = f"import sys, {name}\nprint(*(slow for slow in {SLOW} if slow in sys.modules))"
    environment = os.environ | {"PYTHONPATH": str(SOURCES)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
