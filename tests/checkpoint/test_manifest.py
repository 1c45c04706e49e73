"""A manifest is what was written, or damage, for which the checkpoint before is taken; nothing in between."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bitgen.checkpoint.format import find_checkpoint, step_folder
from bitgen.checkpoint.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    CheckpointError,
    DamagedCheckpoint,
    _checksum,
    read_manifest,
    verify,
)
from bitgen.checkpoint.store import CheckpointStore

FORMAT_1 = Path(__file__).resolve().parents[1] / "golden" / "format1"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with the checkpoints of steps 1 and 2."""
    store = CheckpointStore(tmp_path / "run", keep=2)
    for step in (1, 2):
        store.save(step, {"weight": torch.ones(3)}, {"step": step}, {"config.yaml": "a: 1\n"}, None)
    return store.folder


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_each_flipped_bit_of_a_manifest_is_damage_or_changes_nothing(run: Path) -> None:
    folder = run / step_folder(2)
    path = folder / MANIFEST_FILE
    content, whole = path.read_bytes(), read_manifest(folder)
    accepted = 0
    for bit in range(8 * len(content)):
        path.write_bytes(flipped(content, bit))
        try:
            assert read_manifest(folder) == whole, bit
            accepted += 1
        except DamagedCheckpoint as error:
            assert str(path) in str(error) and str(error).isprintable(), bit
    assert accepted < 100, "spaces and line breaks between the parts alone"


@pytest.mark.parametrize("era", ["today", "format 1"])
def test_for_a_flipped_bit_the_checkpoint_before_is_taken(run: Path, tmp_path: Path, era: str) -> None:
    if era == "format 1":
        run = shutil.copytree(FORMAT_1, tmp_path / "old")
    newest, before = sorted(run.glob("step-*"), reverse=True)
    path = newest / MANIFEST_FILE
    content, whole = path.read_bytes(), verify(newest)
    for bit in random.Random(1).sample(range(8 * len(content)), 250 if era == "today" else 80):
        path.write_bytes(flipped(content, bit))
        found = find_checkpoint("auto", run)
        assert found is not None
        if found.path == newest:  # also a `1` that became a `2`, formats whose manifests say the same
            now = json.loads(path.read_bytes())
            assert {**now, "format_version": 0} == {**json.loads(content), "format_version": 0}, bit
            assert verify(newest)["files"] == whole["files"]
        else:
            assert found.path == before and list(found.damaged) == [newest], bit


SHAPES: dict[str, Callable[[dict], object]] = {
    "a list": lambda m: [m],
    "null": lambda m: None,
    "no files": lambda m: {k: v for k, v in m.items() if k != "files"},
    "files are a list": lambda m: {**m, "files": list(m["files"])},
    "an entry is a text": lambda m: {**m, "files": {**m["files"], "config.yaml": "x"}},
    "bytes are a text": lambda m: {**m, "files": {**m["files"], "config.yaml": {"bytes": "5", "sha256": "0"}}},
    "no state": lambda m: {**m, "files": {k: v for k, v in m["files"].items() if k != "training_state.pt"}},
    "a name that leads out": lambda m: {**m, "files": {**m["files"], "../x": {"bytes": 5, "sha256": "0"}}},
    "a key too many": lambda m: {**m, "more": 1},
    "the version is a text": lambda m: {**m, "format_version": "2"},
    "the version is true": lambda m: {**m, "format_version": True},
    "no such version": lambda m: {**m, "format_version": 0},
    "another step": lambda m: {**m, "step": 9},
    "a base that is not there": lambda m: {**m, "vision_base": "0" * 16},
}


@pytest.mark.parametrize("signed", [True, False], ids=["with its checksum", "of before there was one"])
@pytest.mark.parametrize("shape", SHAPES)
def test_another_shape_is_damage(run: Path, shape: str, signed: bool) -> None:
    path = run / step_folder(2) / MANIFEST_FILE
    manifest = read_manifest(path.parent)
    changed = SHAPES[shape](manifest)
    if signed and isinstance(changed, dict):
        changed = {**changed, "sha256": _checksum(changed)}
    path.write_text(json.dumps(changed))
    found = find_checkpoint("auto", run)
    assert found is not None and found.step == 1 and len(found.damaged) == 1


def test_a_text_that_is_nested_too_deeply_is_damage(run: Path) -> None:
    (run / step_folder(2) / MANIFEST_FILE).write_text("[" * 100_000)
    found = find_checkpoint("auto", run)
    assert found is not None and found.step == 1


def test_a_manifest_without_a_checksum_still_reads(run: Path) -> None:
    path = run / step_folder(2) / MANIFEST_FILE
    path.write_text(json.dumps(read_manifest(path.parent)))
    found = find_checkpoint("auto", run)
    assert found is not None and found.step == 2 and not found.damaged


def test_only_a_whole_manifest_of_a_newer_format_asks_for_a_newer_program(run: Path) -> None:
    path = run / step_folder(2) / MANIFEST_FILE
    newer = {"format_version": FORMAT_VERSION + 1, "parts": []}
    path.write_text(json.dumps({**newer, "sha256": _checksum(newer)}))
    with pytest.raises(CheckpointError, match=f"format version {FORMAT_VERSION + 1}.*use the version") as caught:
        find_checkpoint("auto", run)
    assert not isinstance(caught.value, DamagedCheckpoint)
    path.write_text(json.dumps({**newer, "format_version": FORMAT_VERSION + 3, "sha256": _checksum(newer)}))
    found = find_checkpoint("auto", run)
    assert found is not None and found.step == 1
