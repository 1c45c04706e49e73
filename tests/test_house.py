"""The architecture, held by a test: imports point down, nothing goes in circles, and files stay readable.

docs/design.md says what the rooms are for. A room is a package or a module directly in ``src/bitgen``.
"""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "bitgen"
FLOORS = (  # from the top
    {"commands", "__main__"},
    {"demo"},
    {"api"},
    {"tasks", "memory"},
    {"evaluation"},
    {"run", "export"},
    {"training", "objectives", "feature_cache", "trained", "trained_vlm"},
    {"data", "checkpoint", "protocols"},
    {"show", "machine", "vlm"},
    {"model", "config", "stages"},
    {"guards"},
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
LONGEST_FILE, LONGEST_TRAINER = 350, 300


def _modules() -> dict[str, Path]:
    """Every module by its name below ``bitgen``."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = _modules()


def _imports(name: str) -> set[str]:
    """Modules of ours that a module imports, anywhere in it."""
    path, found = MODULES[name], set()
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("bitgen.") for alias in node.names if alias.name.startswith("bitgen.")}
        elif isinstance(node, ast.ImportFrom):
            source = (node.module or "").split(".") if node.module else []
            if node.level:
                source = [*package[: len(package) - node.level + 1], *source]
            elif source[0] == "bitgen":
                source = source[1:]
            else:
                continue
            for alias in node.names:
                deeper = ".".join([*source, alias.name])
                found.add(deeper if deeper in MODULES else ".".join(source))
    return {module for module in found if module and module != name}


IMPORTS = {name: _imports(name) for name in MODULES}


def _room(module: str) -> str:
    return module.split(".")[0]


def test_every_room_stands_on_a_floor() -> None:
    rooms = {_room(name) for name in MODULES if name}
    assert rooms == set(FLOOR_OF)


def test_no_arrow_points_up() -> None:
    up = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if name and FLOOR_OF[_room(other)] < FLOOR_OF[_room(name)]
    ]
    assert not up


@pytest.mark.parametrize("rooms", [False, True], ids=["modules", "rooms"])
def test_nothing_imports_in_a_circle(rooms: bool) -> None:
    graph: dict[str, set[str]] = {}
    for name, others in IMPORTS.items():
        if not name:
            continue
        own = _room(name) if rooms else name
        graph.setdefault(own, set()).update({_room(other) if rooms else other for other in others} - {own})
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle


@pytest.mark.parametrize(
    ("room", "never"),
    [
        ("training", {"model", "objectives", "evaluation", "tasks", "config", "feature_cache", "data"}),
        ("run", {"model", "objectives", "evaluation", "tasks", "data"}),
    ],
)
def test_the_loop_knows_no_model_no_loss_and_no_data(room: str, never: set[str]) -> None:
    found = {_room(other) for name in MODULES if _room(name) == room for other in IMPORTS[name]}
    assert not found & never


def test_the_network_imports_nothing_of_ours() -> None:
    """Its files are copied into exports."""
    assert {_room(other) for name in MODULES if _room(name) == "model" for other in IMPORTS[name]} <= {"model"}


def test_only_a_run_imports_the_trainer() -> None:
    assert {name for name, others in IMPORTS.items() if "training.trainer" in others} == {"run"}


def test_the_trainer_names_no_loss_no_tower_no_queue_no_memory_no_file_format() -> None:
    text = MODULES["training.trainer"].read_text(encoding="utf-8").lower()
    words = ("queue", "memory", "temperature", "lora", "adapter", "tower", "contrast", "caption", "phase 1", "phase 2")
    words += ("pixel", "input_ids", "safetensors", "yaml", "torch.save", "ddp", "cache")
    assert [word for word in words if word in text] == []
    assert len(text.splitlines()) < LONGEST_TRAINER


def test_a_file_is_one_idea() -> None:
    repository = SOURCE.parents[1]
    files = [path for folder in ("src", "data_prep", "benchmarks") for path in (repository / folder).rglob("*.py")]
    assert {str(p) for p in files if len(p.read_text(encoding="utf-8").splitlines()) > LONGEST_FILE} == set()
