"""A run goes on, and is read, with its own tokenizer and data alone; held-out data is not the training data."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bitgen.checkpoint.manifest import STATE_FILE, CheckpointError, read_manifest, write_manifest
from bitgen.config import ConfigError
from bitgen.config.sources import parse_sources, same_source
from bitgen.data.dataset import PairDataset
from bitgen.data.records import Record
from bitgen.data.sidecar import SIDECAR
from bitgen.data.text_shards import tokenizer_sha256
from bitgen.data.tokenizer import load_tokenizer, train_bpe
from bitgen.tasks.fingerprints import fingerprint_of, trained_on
from bitgen.tasks.stage1_parts import start_from
from bitgen.trained import TOKENIZER, open_model
from support.data import encode, write_features, write_images
from support.runs import written_run


def swap_two_tokens(folder: Path) -> None:
    """Another tokenizer of the same size: two tokens have changed their ids."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    one, other = (token for token, id in vocabulary.items() if id in (70, 71))
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    path.write_text(json.dumps(content), encoding="utf-8")


# ---- tokenizer ----


def init_from(path: Path) -> None:
    start_from(torch.nn.Module(), train_bpe(["another"], 300), str(path))  # type: ignore[arg-type]


@pytest.mark.parametrize("reader", [open_model, init_from], ids=["evaluate, caption, memory, export", "init_from"])
def test_a_checkpoint_is_not_read_with_another_tokenizer(tmp_path: Path, reader: Callable) -> None:
    run = shutil.copytree(written_run(), tmp_path / "run", symlinks=True)
    folder = run / "step-00000007"
    state = torch.load(folder / STATE_FILE, weights_only=True)
    state["fingerprints"] = {TOKENIZER: tokenizer_sha256(load_tokenizer(run / "tokenizer"))}
    torch.save(state, folder / STATE_FILE)
    write_manifest(folder, 7, read_manifest(folder)["vision_base"])
    open_model(run)
    swap_two_tokens(run / "tokenizer")
    with pytest.raises(ConfigError, match="not the one that the model was trained with"):
        reader(run)


def test_init_from_takes_no_damaged_checkpoint(tmp_path: Path) -> None:
    run = shutil.copytree(written_run(), tmp_path / "run", symlinks=True)
    weights = run / "step-00000007" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ConfigError, match="init_from: .*damaged"):
        init_from(run)


def test_resuming_with_another_tokenizer_is_refused_and_the_kept_one_stays(build, tmp_path: Path) -> None:
    words = ["a red circle above a blue square"] * 3
    for name in ("first", "again"):
        train_bpe(words, 262).save_pretrained(str(tmp_path / name))
    settings = {"max_steps": 1, "tokenizer": str(tmp_path / "first")}
    first = build(**settings)
    first.fit()
    kept = Path(first.store.folder) / "tokenizer"
    before = (kept / "tokenizer.json").read_bytes()
    build(**{**settings, "tokenizer": str(tmp_path / "again")}, resume="auto")  # equal content, another name
    for name in ("first", "again"):
        swap_two_tokens(tmp_path / name)
        with pytest.raises(ConfigError, match="not the one that this run began with"):
            build(**{**settings, "tokenizer": str(tmp_path / name)}, resume="auto")
        assert (kept / "tokenizer.json").read_bytes() == before
    elsewhere = {**settings, "resume": str(first.store.newest), "tokenizer": str(tmp_path / "again")}
    with pytest.raises(CheckpointError, match="the tokenizer is not the one that it was trained with"):
        build("elsewhere", **elsewhere)


def test_a_kept_tokenizer_that_changed_is_refused(build) -> None:
    first = build(max_steps=1)
    first.fit()
    swap_two_tokens(Path(first.store.folder) / "tokenizer")
    with pytest.raises(CheckpointError, match="the tokenizer is not the one"):
        build(max_steps=1, resume="auto")


# ---- data ----


def write(folder: Path, seed: int = 1, count: int = 20, words: str = "image", first: int = 0) -> Path:
    random = np.random.default_rng(seed)
    pictures = [Image.fromarray(random.integers(0, 255, (30, 40, 3), dtype=np.uint8)) for _ in range(count)]
    records = [Record(f"{n + first}.png", encode(p), [f"{words} {n} of all"]) for n, p in enumerate(pictures)]
    write_images(folder, records, overwrite=True)
    return folder


def test_resuming_with_other_data_of_the_same_size_is_refused(build, tmp_path: Path) -> None:
    settings = {"max_steps": 1, "train_data": str(write(tmp_path / "data")), "grad_accum_steps": 1}
    build(**settings).fit()
    write(tmp_path / "data")  # prepared anew from the same files
    build(**settings, resume="auto")
    write(tmp_path / "data", words="photo")
    with pytest.raises(CheckpointError, match="the training data is not the one"):
        build(**settings, resume="auto")


def test_the_fingerprint_is_of_names_captions_and_their_order(tmp_path: Path, processor) -> None:
    def of(**how: object) -> str | None:
        return fingerprint_of(PairDataset(write(tmp_path / "data", **how), processor))

    assert of() == of()
    assert len({of(), of(words="x"), of(count=19), of(first=1)}) == 4


@pytest.fixture
def processor():
    return open_model(written_run()).processor


@pytest.mark.parametrize("name", ["data", "data/", "./data", "link", "x/../data", "{absolute}"])
def test_one_folder_has_many_names(tmp_path: Path, monkeypatch, name: str, tiny_config) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "x").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to("data")
    monkeypatch.chdir(tmp_path)
    name = name.format(absolute=os.path.join(tmp_path, "data"))
    assert same_source("data", name) and not same_source("other", name)
    for train in ("data", "other,data", "other:1,data:2"):
        with pytest.raises(ConfigError, match="training data itself"):
            tiny_config(train_data=train, val_data=name)
    text = {"text_loss_weight": 1.0, "tokenizer": "gpt2", "vocab_size": 50257}
    with pytest.raises(ConfigError, match="training text itself"):
        tiny_config(text_data="data", text_val_data=name, **text)
    with pytest.raises(ValueError, match="twice"):
        parse_sources(f"data,{name}")


def test_a_copy_of_the_training_data_is_no_held_out_data(build, tmp_path: Path, processor, caplog) -> None:
    train = write(tmp_path / "train")
    copy = shutil.copytree(train, tmp_path / "copy")
    datasets = [PairDataset(folder, processor) for folder in (train, copy)]
    assert trained_on(*datasets) == (20, 20)
    with pytest.raises(ConfigError, match="holds the training images themselves"):
        build(train_data=str(train), val_data=str(copy), grad_accum_steps=1)
    same_names = PairDataset(write(tmp_path / "val", seed=2), processor)
    assert trained_on(datasets[0], same_names) == (0, 20)
    part = write(tmp_path / "part", count=30)
    build(train_data=str(train), val_data=str(part), grad_accum_steps=1)
    assert "20 of 30 held-out images that were compared are training images too" in caplog.text


def test_held_out_features_are_of_the_encoder_of_the_training_data(build, tmp_path: Path) -> None:
    """Those of another one of the same width would be noise."""
    folders = []
    for name in ("one", "other"):
        folders.append(write_features(tmp_path / name, [[f"{name} {n}"] for n in range(20)]))
        path = folders[-1] / SIDECAR
        path.write_text(json.dumps(json.loads(path.read_text()) | {"encoder": name}))
    settings = {"vision_encoder": "features", "grad_accum_steps": 1, "max_steps": 1}
    with pytest.raises(ConfigError, match="features of the encoder other, train_data of one: prepare both"):
        build(**settings, train_data=str(folders[0]), val_data=str(folders[1]))
