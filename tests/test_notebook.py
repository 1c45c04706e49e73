"""The notebook as it is committed, and the Python lines of the README: what they use exists, and they were run."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import typing
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import nbformat
import pytest

import bitgen.api

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOK = REPOSITORY / "examples" / "quickstart.ipynb"
MOST_BYTES = 600_000
# A path from the root of a file system, of any machine: not what follows a word, a dot or a colon, as in addresses.
_MACHINE_PATH = re.compile(r"(?<![\w.:/<])(?:/[\w.~-]+){2,}|\b[A-Z]:\\\w")


class Made(NamedTuple):
    """Something of a type that is known without running the code."""

    kind: Any


def readme_lines() -> str:
    """The code between the README's two marks."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    [code] = re.findall(r"<!-- python:start -->\n```python\n(.*?)```\n<!-- python:end -->", text, re.DOTALL)
    return code


def docstring_lines() -> str:
    """The code in the docstring of ``bitgen.api``."""
    _, _, rest = inspect.cleandoc(bitgen.api.__doc__ or "").partition("::\n\n")
    block = re.match(r"(?:(?: {4}.*)?\n)+", rest)
    return inspect.cleandoc(block.group()) + "\n" if block else ""


def wrong_uses(code: str) -> list[str]:
    """Names of this package that code uses and that do not exist, and calls that do not fit their signature.

    It follows what the annotations say: of modules, classes, what calls return, and items of lists.
    """
    return _Uses().of(ast.parse(code))


class _Uses(ast.NodeVisitor):
    def __init__(self) -> None:
        self.names: dict[str, Any] = {}
        self.wrong: list[str] = []

    def of(self, tree: ast.AST) -> list[str]:
        self.visit(tree)
        return sorted(set(self.wrong))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name.split(".")[0] == "bitgen":
                self.names[alias.asname or "bitgen"] = importlib.import_module(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if (node.module or "").split(".")[0] == "bitgen":
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                self.names[alias.asname or alias.name] = self._part(module, alias.name)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            if isinstance(target, ast.Name):
                self.names[target.id] = self._value(node.value)

    def visit_For(self, node: ast.For) -> None:
        kind = getattr(self._value(node.iter), "kind", None)
        if isinstance(node.target, ast.Name):
            self.names[node.target.id] = Made(typing.get_args(kind)[0]) if typing.get_origin(kind) is list else None
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._value(node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        self._value(node)
        self.generic_visit(node)

    def _value(self, node: ast.expr) -> Any:
        """What an expression is: a module, function or class, a :class:`Made`, or None where that is not known."""
        match node:
            case ast.Name():
                return self.names.get(node.id)
            case ast.Attribute():
                whole = self._value(node.value)
                return None if whole is None else self._part(whole, node.attr)
            case ast.Call():
                return self._called(node, self._value(node.func))
            case ast.Subscript():
                made = self._value(node.value)
                if isinstance(made, Made) and typing.get_origin(made.kind) is list:
                    return made if isinstance(node.slice, ast.Slice) else Made(typing.get_args(made.kind)[0])
        return None

    def _part(self, whole: Any, name: str) -> Any:
        owner = whole.kind if isinstance(whole, Made) else whole
        if typing.get_origin(owner) is not None or not isinstance(owner, (type, ModuleType)):
            return None
        if not hasattr(owner, name):
            self.wrong.append(f"{owner.__name__} has no {name}")
            return None
        part = getattr(owner, name)
        # Bound to nothing in particular: a signature without `self`.
        return part.__get__(object()) if isinstance(whole, Made) and inspect.isfunction(part) else part

    def _called(self, node: ast.Call, what: Any) -> Any:
        if not callable(what) or isinstance(what, Made):
            return None
        if not any(isinstance(one, ast.Starred) for one in node.args):
            try:
                inspect.signature(what).bind(*node.args, **{one.arg: one.value for one in node.keywords if one.arg})
            except TypeError as error:
                self.wrong.append(f"{what.__name__}: {error}")
        if isinstance(what, type):
            return Made(what)
        kind = typing.get_type_hints(getattr(what, "__func__", what)).get("return")
        return None if kind is None else Made(kind)


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    read = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(read)
    return read


@pytest.fixture(scope="module")
def code(notebook) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_code_of_the_notebook_uses_what_exists(code) -> None:
    assert len(code) > 8 and max(len(cell.source.splitlines()) for cell in code) <= 10
    assert wrong_uses("\n".join(cell.source for cell in code)) == []


def test_the_notebook_was_run_from_top_to_bottom_without_errors(code) -> None:
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 5
    assert sum(output.output_type == "stream" for output in outputs) >= 4


def test_the_notebook_is_small_and_speaks_of_no_machine(notebook) -> None:
    assert NOTEBOOK.stat().st_size < MOST_BYTES
    for cell in notebook.cells:
        texts = [cell.source]
        for output in cell.get("outputs", ()):
            texts += [output.get("text", ""), output.get("data", {}).get("text/plain", "")]
        assert [found for text in texts for found in _MACHINE_PATH.findall(text)] == []
        assert "execution" not in cell.metadata, "times of a run"


def test_links_of_the_notebook_lead_somewhere(notebook) -> None:
    links = [link for cell in notebook.cells for link in re.findall(r"\]\(([^)]+)\)", cell.source)]
    assert links and [link for link in links if not (NOTEBOOK.parent / link).exists()] == []


def test_the_readme_shows_the_lines_of_the_api() -> None:
    assert readme_lines() == docstring_lines()
    assert wrong_uses(readme_lines()) == []
    assert sum(bool(line) for line in readme_lines().splitlines()) == 10


@pytest.mark.parametrize("document", sorted((REPOSITORY / "docs").glob("*.md")), ids=lambda path: path.stem)
def test_the_python_of_documents_uses_what_exists(document: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    assert wrong_uses("\n".join(blocks)) == []
    assert blocks or document.stem != "memory"


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("bitgen.lode('x')", ["bitgen has no lode"]),
        ("bitgen.load('x').retrieve('a')", ["Model has no retrieve"]),
        ("bitgen.load('x').search('a')", ["search: missing a required argument: 'images'"]),
        ("bitgen.load('x').search('a', [], top_k=3)", ["search: got an unexpected keyword argument 'top_k'"]),
        ("bitgen.load('x').search('a', [])[0].caption", ["Found has no caption"]),
        ("bitgen.load('x').search('a', [])[:5][0].item.anything", []),
        ("m = bitgen.load('x').memory(slots=3)\nm.recal('a')", ["EpisodicMemory has no recal"]),
        ("for a in bitgen.load('x').memory().recall('x'):\n    a.id, a.share", ["Recollection has no share"]),
        ("for a in bitgen.load('x').memory():\n    a.share", []),
        ("from bitgen.data.scenes.dataset import Scenery", ["bitgen.data.scenes.dataset has no Scenery"]),
        ("unknown.anything(1)", []),
    ],
)
def test_what_does_not_exist_is_found(line: str, wrong: list[str]) -> None:
    assert wrong_uses(f"import bitgen\n{line}") == wrong


@pytest.mark.parametrize(
    ("text", "is_path"),
    [
        ("/home/ada/run", True),
        ("in '/srv/x/y.png'", True),
        ("C:\\Users", True),
        ("../checkpoints/quickstart", False),
        ("https://example.org/a/b", False),
        ("1/2 and/or 56", False),
    ],
)
def test_paths_of_a_machine_are_found(text: str, is_path: bool) -> None:
    assert bool(_MACHINE_PATH.search(text)) == is_path
