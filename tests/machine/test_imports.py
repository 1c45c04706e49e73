"""What is imported only where it is needed: each of these libraries takes half a second or more to load."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "src"
SLOW = ("peft", "bitsandbytes", "matplotlib", "scipy.stats", "datasets", "tensorboard")


def test_the_list_names_installed_libraries() -> None:
    # A library that is not there is never loaded, so that the tests below would hold for a wrong name.
    assert all(importlib.util.find_spec(name) for name in SLOW if name != "bitsandbytes")


def test_what_opens_models_is_imported_without_libraries_that_it_may_not_need() -> None:
    """One after the other: what none of them has loaded when all are there, none loads alone."""
    names = ["bitgen.api", "bitgen.commands.caption", "bitgen.commands.memory"]
    names += ["bitgen.demo.tabs.page"] if importlib.util.find_spec("gradio") else []
    code = f"import sys, {', '.join(names)}\nprint(*(slow for slow in {SLOW} if slow in sys.modules))"
    environment = os.environ | {"PYTHONPATH": str(SOURCES)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
