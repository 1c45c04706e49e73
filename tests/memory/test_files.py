"""A memory's file: what comes back, what is refused, and what is left intact."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bitgen.memory import EpisodicMemory, open_model
from bitgen.memory.address_space import IMAGE
from bitgen.memory.files import exclusive
from support.memories import contents, pairs
from support.runs import written_run


@pytest.fixture
def taught(memory) -> EpisodicMemory:
    memory.write_codes(pairs(6), [f"text {number}" for number in range(6)])
    return memory


def test_a_saved_memory_comes_back(taught, opened, tmp_path) -> None:
    taught.edit("1", "a new text")
    taught.forget("4")
    taught.save(tmp_path / "a.memory")
    other = EpisodicMemory(*opened, slots=4)
    other.load(tmp_path / "a.memory")
    assert other.episodes == taught.episodes and torch.equal(other.codes.pairs, taught.codes.pairs)
    assert other.state().slots == 32 and other.write_codes(pairs(1, seed=9), ["more"]) == ["7"]
    other.forget("7")
    for left, right in zip(other.codes.precision.solve(), taught.codes.precision.solve(), strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-6)
    assert other.recall_codes(pairs(6)[:1, :16], IMAGE)[0][0].text == "a new text"


def test_an_empty_memory_can_be_saved(memory, tmp_path) -> None:
    memory.save(tmp_path / "a.memory")
    memory.load(tmp_path / "a.memory")
    assert len(memory) == 0


def test_a_file_of_the_format_without_whitening_and_digest_is_read(taught, opened, tmp_path) -> None:
    taught.save(tmp_path / "a.memory")
    _change_header(tmp_path / "a.memory", lambda header: header.update(format_version=1))
    other = EpisodicMemory(*opened)
    other.load(tmp_path / "a.memory")
    assert other.episodes == taught.episodes and other.codes.space.whitening is None


def test_editing_a_file_changes_it_whole_or_not_at_all(memory, tmp_path) -> None:
    path = tmp_path / "a.memory"
    with memory.editing(path):
        memory.write_codes(pairs(1), ["one"])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="taken"), memory.editing(path):
        memory.write_codes(pairs(1), ["two"])
        memory.write_codes(pairs(1), ["three"], keys=["1"])
    assert path.read_bytes() == before


def test_a_file_that_is_being_written_is_left_alone(taught, tmp_path) -> None:
    path = tmp_path / "a.memory"
    taught.save(path)
    before = path.read_bytes()
    taught.forget("1")
    program = (
        "import fcntl, sys\nfile = open(sys.argv[1], 'ab')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\nsys.stdin.read()"
    )
    lock = tmp_path / ".a.memory.lock"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="in use by another process"):
            taught.save(path)
        holder.stdin.close()
    assert path.read_bytes() == before
    taught.save(path)
    with exclusive(path):
        taught.load(path)  # reading is not kept out


def test_a_save_that_fails_leaves_the_old_file(taught, tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.memory"
    taught.save(path)
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ValueError, match="No space left"):
        taught.save(path)
    assert path.read_bytes() == before and sorted(p.suffix for p in tmp_path.iterdir()) == [".lock", ".memory"]


def _change_header(path: Path, change: Callable[[dict], None]) -> None:
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["bitgen_memory"])
    change(header)
    save_file(load_file(path), path, {"bitgen_memory": json.dumps(header)})


def _unsealed(metadata: dict[str, str]) -> dict[str, str]:
    """As files were before they had a digest."""
    return {"bitgen_memory": metadata["bitgen_memory"]}


def _spoil_whitening(path: Path) -> None:
    with safe_open(path, "pt") as file:
        metadata = _unsealed(file.metadata())
    means, matrices = torch.full((2, 16), torch.nan), torch.zeros(2, 16, 16)
    save_file({**load_file(path), "whitening_means": means, "whitening_matrices": matrices}, path, metadata)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "there is no such memory file"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "damaged or no memory file"),
    "other": (lambda path: save_file({"weight": torch.ones(2)}, path), "damaged or no memory file"),
    "whitening": (_spoil_whitening, "NaN in its whitening"),
    "newer": (lambda path: _change_header(path, lambda h: h.update(format_version=3)), "format 3"),
    "one episode fewer": (lambda path: _change_header(path, lambda h: h["episodes"].pop()), "do not fit together"),
    "slots": (lambda path: _change_header(path, lambda h: h.update(slots=0)), "slots is 0"),
    "ids": (lambda path: _change_header(path, lambda h: h["episodes"][0].update(id="2")), "an id occurs twice"),
    "text": (lambda path: _change_header(path, lambda h: h["episodes"][0].update(text=" ")), "is empty"),
    "NaN": (
        lambda path: _change_header(path, lambda h: None) or _spoil(path),
        "NaN or infinity",
    ),
}


def _spoil(path: Path) -> None:
    with safe_open(path, "pt") as file:
        metadata = _unsealed(file.metadata())
    tensors = load_file(path)
    tensors["codes"][0, 0] = torch.nan
    save_file(tensors, path, metadata)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_bad_file_is_refused_and_the_memory_is_as_it_was(taught, tmp_path, kind) -> None:
    damage, message = DAMAGE[kind]
    path = tmp_path / "a.memory"
    taught.save(path)
    damage(path)
    before = contents(taught)
    with pytest.raises(ValueError, match=message) as raised:
        taught.load(path)
    assert str(path) in str(raised.value) and contents(taught) == before


def test_a_file_of_another_model_or_width_is_refused(taught, tmp_path) -> None:
    path = tmp_path / "a.memory"
    taught.save(path)
    with pytest.raises(ValueError, match="made with another model"):
        EpisodicMemory(*open_model(written_run(use_memory=False))).load(path)
    wide = EpisodicMemory(*open_model(written_run(embed_dim=32, vision_embed_dim=32, memory_dim=32)))
    with pytest.raises(ValueError, match="codes of width 32, this model's have 64"):
        wide.load(path)
    with pytest.raises(ValueError, match="another model"), wide.editing(path):
        raise AssertionError("not reached")
    EpisodicMemory(taught.encoder.model, taught.encoder.processor).load(path)


def test_saving_removes_what_a_killed_writer_left_and_nothing_of_another_file(taught, tmp_path) -> None:
    path = tmp_path / "a.memory"
    own, others = tmp_path / ".a.memory.123.tmp", (tmp_path / ".a.memory.old.123.tmp", tmp_path / ".a.memory.png.9.tmp")
    for leftover in (own, *others):
        leftover.write_text("half")
    taught.save(path)
    assert not own.exists() and all(other.exists() for other in others)
