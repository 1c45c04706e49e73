"""No file that BitGen reads can run code: the calls by which it could are not in the sources, or are made safe."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = [path for folder in ("src", "data_prep") for path in sorted((REPOSITORY / folder).rglob("*.py"))]

# What is never called.
FORBIDDEN = {"eval", "exec", "compile", "os.system", "os.popen", "pickle.load", "pickle.loads", "dill.load"}
FORBIDDEN |= {"joblib.load", "marshal.loads", "shelve.open", "yaml.unsafe_load", "yaml.full_load", "tempfile.mktemp"}
FORBIDDEN |= {"shutil.unpack_archive", "importlib.reload", "os.startfile"}
FORBIDDEN |= {"subprocess.run", "subprocess.Popen", "subprocess.check_output", "subprocess.call", "os.execvp"}


def _calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """The calls of a module under the full names of what they call, as far as its imports tell."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    full = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            full |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            full |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            head, _, rest = ast.unparse(node.func).partition(".")
            name = full.get(head, head) + (f".{rest}" if rest else "")
            yield name.replace("np.", "numpy."), node


def _keyword(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == name), None)


def _dangers(path: Path) -> Iterator[str]:
    for name, call in _calls(path):
        where = f"{path.name}:{call.lineno}: {ast.unparse(call)[:80]}"
        if name in FORBIDDEN:
            yield where
        if name == "torch.load" and _keyword(call, "weights_only") != "True":
            yield where
        if name in ("numpy.load", "numpy.lib.format.read_array") and _keyword(call, "allow_pickle") not in (
            None,
            "False",
        ):
            yield where
        if name == "yaml.load" and "Loader" not in ast.unparse(call):
            yield where
        if name.endswith(("extractall", ".extract")) and "filter" not in ast.unparse(call):
            yield where
        is_auto = name.startswith("transformers.Auto") and name.endswith((".from_config", ".from_pretrained"))
        if is_auto and not _keyword(call, "trust_remote_code"):
            yield where  # where nobody says, it asks, and takes a yes from a pipe
        if _keyword(call, "shell") == "True" or _keyword(call, "trust_remote_code") == "True":
            yield where


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_call_runs_what_a_file_says(path: Path) -> None:
    assert list(_dangers(path)) == []


@pytest.mark.parametrize(
    "line",
    [
        "import torch\ntorch.load('x')",
        "import torch as t\nt.load('x', weights_only=False)",
        "from pickle import loads\nloads(b'')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import yaml\nyaml.load('x')",
        "import subprocess\nsubprocess.run(['ls'])",
        "model.from_pretrained('x', trust_remote_code=True)",
        "from transformers import AutoConfig\nAutoConfig.from_pretrained('x')",
        "eval('1')",
    ],
)
def test_such_a_call_is_found(tmp_path: Path, line: str) -> None:
    file = tmp_path / "module.py"
    file.write_text(line)
    assert len(list(_dangers(file))) == 1
