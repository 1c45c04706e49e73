"""Models for the page: of stage 1, one that speaks from a memory, and one of stage 2. Their weights are random."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import bitgen
from bitgen.demo.scenes import held_out_scenes, table
from support.reasoning import QUESTIONS, config_of, trained
from support.runs import scratch, written_run
from support.spoken_memories import speaking_run


@pytest.fixture(scope="session")
def stage1_run() -> Path:
    return written_run()


@pytest.fixture(scope="session")
def stage2_run() -> Path:
    folder = scratch()
    trained(config_of(folder / "captioner"))
    asked = config_of(folder / "asked", **QUESTIONS, init_from=str(folder / "captioner" / "checkpoints"))
    trained(asked)
    return folder / "asked" / "checkpoints"


@pytest.fixture(scope="session")
def model(stage1_run: Path) -> bitgen.Model:
    return bitgen.load(stage1_run, device="cpu")


@pytest.fixture(scope="session")
def speaker() -> bitgen.Model:
    return bitgen.load(speaking_run(), device="cpu")


@pytest.fixture(scope="session")
def reasoner(stage2_run: Path) -> bitgen.Model:
    return bitgen.load(stage2_run, device="cpu")


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "scene.png"
    held_out_scenes(3)[2].picture.save(path)
    return str(path)


@pytest.fixture
def table_photo(tmp_path: Path) -> str:
    path = tmp_path / "table.png"
    table(3).picture.save(path)
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures, one of them in a folder below, and two files that are none."""
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    for row, scene in enumerate(held_out_scenes(5)):
        scene.picture.save(photos / ("more" if row == 4 else "") / f"{row}.png")
    (photos / "broken.jpg").write_bytes(b"no picture")
    (photos / "notes.txt").write_text("no picture")
    return photos


@pytest.fixture
def huge(tmp_path: Path) -> str:
    """A picture with more pixels than any model takes, in a small file."""
    path = tmp_path / "huge.png"
    Image.new("1", (20_000, 20_000)).save(path)
    return str(path)
