"""What is loaded is what was compared: files that others replace while they are read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitgen.checkpoint.format import read_checkpoint
from bitgen.checkpoint.manifest import (
    EMA_FILE,
    MODEL_FILE,
    CheckpointError,
    CheckpointFiles,
    DamagedCheckpoint,
    read_manifest,
    write_manifest,
)
from bitgen.checkpoint.store import CheckpointStore
from bitgen.export.revisions import export_run
from bitgen.machine.files import held
from bitgen.model.causal_lm_bitgen import CHECKSUMS
from bitgen.trained import open_model
from bitgen.trained_vlm import own_weights, read_description
from bitgen.vlm.description import Description, LanguageSource
from support.runs import written_run

STEP = "step-00000007"


@contextlib.contextmanager
def replaced_all_the_time(path: Path, other: bytes) -> Iterator[None]:
    """Another process' save over and over: ``path`` is now the one file, now the other, each whole."""
    good, done = path.read_bytes(), threading.Event()

    def work() -> None:
        while not done.is_set():
            for content in (other, good):
                path.with_name("swap").write_bytes(content)
                os.replace(path.with_name("swap"), path)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        path.write_bytes(good)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return shutil.copytree(written_run(features=True), tmp_path / "run", symlinks=True)


def halved(path: Path, folder: Path) -> bytes:
    """The same file with other weights of the same shapes."""
    save_file({name: tensor / 2 for name, tensor in load_file(path).items()}, folder / "other", {"format": "pt"})
    return (folder / "other").read_bytes()


def test_weights_are_those_that_were_compared_or_none(run: Path, tmp_path: Path) -> None:
    weights = run / STEP / "model.safetensors"
    expected = open_model(run).model.final_norm.weight
    assert expected.abs().sum() > 0
    refused = 0
    with replaced_all_the_time(weights, halved(weights, tmp_path)):
        for _ in range(30):
            try:
                assert torch.equal(open_model(run).model.final_norm.weight, expected)
            except DamagedCheckpoint:
                refused += 1
    assert refused, "the other file was never met"


def test_a_state_is_the_one_that_was_compared_or_none(run: Path, tmp_path: Path) -> None:
    path = run / STEP / "training_state.pt"
    state = torch.load(path, weights_only=True)
    expected = state["objective"]["queue"]["image_features"].clone()
    state["objective"]["queue"]["image_features"] += 1
    torch.save(state, tmp_path / "other")
    read = refused = 0
    with replaced_all_the_time(path, (tmp_path / "other").read_bytes()):
        for _ in range(60):
            try:
                found = read_checkpoint(run / STEP).state["objective"]["queue"]
            except DamagedCheckpoint:
                refused += 1
            else:
                assert torch.equal(found["image_features"], expected)
                read += 1
    assert read and refused


def test_an_export_is_the_one_that_was_compared_or_none(run: Path, tmp_path: Path) -> None:
    exported = export_run(str(run), str(tmp_path / "export"), True, False, {})
    weights, refused = exported / "model.safetensors", 0
    expected = open_model(exported).model.final_norm.weight
    with replaced_all_the_time(weights, halved(weights, tmp_path)):
        for _ in range(30):
            try:
                assert torch.equal(open_model(exported).model.final_norm.weight, expected)
            except DamagedCheckpoint:
                refused += 1
    assert refused
    assert (exported / CHECKSUMS).is_file()


def vlm_checkpoint(folder: Path) -> Path:
    """A checkpoint of a model of parts, with averaged weights of one of its two tensors."""
    weights = {name: torch.full((300, 300), float(number)) for number, name in enumerate("ab", 1)}
    description = json.dumps(Description(LanguageSource("random")).to_dict())
    store = CheckpointStore(folder, keep=1)
    averaged = {"b": torch.full((300, 300), 5.0)}
    store.save(7, weights, {"step": 7}, {"config.json": description}, None, is_best=True, averaged=averaged)
    return folder / STEP


def test_a_model_of_parts_is_the_one_that_was_compared_or_none(tmp_path: Path) -> None:
    folder = vlm_checkpoint(tmp_path / "run")
    for name in (MODEL_FILE, EMA_FILE):
        refused = 0
        with replaced_all_the_time(folder / name, halved(folder / name, tmp_path)):
            for _ in range(60):
                try:
                    found = own_weights(folder)
                    assert [found[each].unique().tolist() for each in "ab"] == [[1.0], [5.0]], "averaged where it is"
                except DamagedCheckpoint:
                    refused += 1
        assert refused, "the other file was never met"


def test_a_description_is_the_one_that_was_compared_or_none(tmp_path: Path) -> None:
    path = vlm_checkpoint(tmp_path / "run") / "config.json"
    assert read_description(path.parent).language.name == "random"
    path.write_text(path.read_text().replace("random", "redone"))
    with pytest.raises(DamagedCheckpoint, match="config.json is not what was written"):
        read_description(path.parent)


def test_what_is_held_stays_whatever_becomes_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old" * 1_000_000)
    with held(path, copied=True) as copy, held(path, copied=False) as same:
        with open(path, "r+b") as file:
            file.write(b"NEW")
        path.unlink()
        assert Path(copy.name).read_bytes() == b"old" * 1_000_000
        assert Path(same.name).read_bytes()[:6] == b"NEWold", "the open file itself"
    assert copy.sha256 == same.sha256 == hashlib.sha256(b"old" * 1_000_000).hexdigest()


def test_a_pipe_in_place_of_a_file_is_damage(run: Path) -> None:
    files = CheckpointFiles(run / STEP)
    (run / STEP / "config.yaml").unlink()
    os.mkfifo(run / STEP / "config.yaml")
    files.manifest["files"]["config.yaml"]["bytes"] = 0
    with pytest.raises(DamagedCheckpoint, match="config.yaml: it is not a regular file"):
        files.read("config.yaml")


@pytest.mark.parametrize(
    ("name", "value"), [("num_layers", 100_000), ("vocab_size", 10**12), ("embed_dim", 1e12), ("lora_rank", -(10**9))]
)
def test_a_checkpoint_of_a_size_beyond_every_model_is_refused_before_it_is_built(run: Path, name: str, value) -> None:
    path = run / STEP / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    manifest = read_manifest(path.parent)
    (path.parent / "manifest.json").unlink()
    write_manifest(path.parent, manifest["step"], manifest["vision_base"])
    with pytest.raises(CheckpointError, match=f"{STEP} cannot be used: config.json: {name} is .*, beyond") as refused:
        open_model(run)
    assert "\n" not in str(refused.value)
