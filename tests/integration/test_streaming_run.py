"""Runs from streamed shards and mixed sources: exact resume, and records that had to be replaced."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bitgen.checkpoint.format import CheckpointError, find_checkpoint
from bitgen.checkpoint.manifest import read_manifest, write_manifest
from bitgen.config import ConfigError
from bitgen.data.bad_records import Skipped
from bitgen.data.records import Record
from bitgen.machine.ranks import Processes
from bitgen.training.progress import Progress
from bitgen.training.reporting import message_of
from bitgen.training.skipped_records import SkippedRecords, TooManyBadRecords
from support.data import encode, write_images
from support.runs import fit_until, same_checkpoint


def _records(count: int, broken: tuple[int, ...] = ()) -> list[Record]:
    records = []
    for index in range(count):
        payload = encode(Image.new("RGB", (32, 24), (7 * index % 256, 255 - index, index)), "JPEG")
        payload = payload[: 200 if index in broken else None]
        records.append(Record(f"{index}.jpg", payload, [f"picture {index} of many", f"number {index}"]))
    return records


@pytest.fixture
def sources(tmp_path: Path) -> str:
    """40 images in two Parquet shards and 24 in a dataset folder, mixed two to one."""
    records = _records(40)
    (tmp_path / "parquet").mkdir()
    for name, part in (("a", records[:25]), ("b", records[25:])):
        table = pa.table({"image": [r.payload for r in part], "captions": [r.captions for r in part]})
        pq.write_table(table, tmp_path / "parquet" / f"{name}.parquet", row_group_size=6)
    write_images(tmp_path / "folder", _records(24))
    return f"{tmp_path / 'parquet'}:2,{tmp_path / 'folder'}:1"


def test_a_streamed_mixture_resumes_exactly(build, sources) -> None:
    settings = dict(streaming=True, train_data=sources, num_workers=2, shuffle_buffer=9, image_augmentation=True)
    straight = build("straight", **settings)
    assert len(straight.source.sampler) == 8 and straight.stage.steps_per_epoch == 4
    straight.fit()
    assert not fit_until(build("resumed", **settings), 3)
    second = build("resumed", resume="auto", **settings)
    second.fit()
    same_checkpoint(straight.store.folder, second.store.folder)
    for changed, named in (({"num_workers": 1}, "num_workers"), ({"shuffle_buffer": 20}, "shuffle_buffer")):
        with pytest.raises(CheckpointError, match=named):
            build("resumed", resume="auto", **{**settings, **changed})
    with pytest.raises(CheckpointError, match="weights of the mixed sources"):
        build("resumed", resume="auto", **{**settings, "train_data": sources.replace(":2,", ":3,")})


def test_a_stream_resumes_with_its_own_shards_alone(build, sources, tmp_path: Path) -> None:
    settings = dict(streaming=True, train_data=sources, num_workers=0, max_steps=4)
    assert not fit_until(build("run", **settings), 2)
    shard = tmp_path / "parquet" / "b.parquet"
    content, records = shard.read_bytes(), _records(40)[25:]
    table = pa.table({"image": [r.payload for r in records], "captions": [r.captions[::-1] for r in records]})
    pq.write_table(table, shard, row_group_size=6)
    with pytest.raises(CheckpointError, match=r"the shard 1 \(b.parquet\) is not the one that it was trained with"):
        build("run", resume="auto", **settings)
    shard.write_bytes(content)
    arrow = next((tmp_path / "folder").glob("*.arrow"))
    whole = arrow.read_bytes()
    arrow.write_bytes(whole.replace(b"number 3", b"number 4"))
    with pytest.raises(CheckpointError, match=r"the shard 2 \(.*arrow\) is not the one"):
        build("run", resume="auto", **settings)
    arrow.write_bytes(whole)
    without_fingerprints(tmp_path, "run")
    build("run", resume="auto", **settings).fit()


def without_fingerprints(folder: Path, name: str) -> None:
    """A run's newest checkpoint as it was before shards had any."""
    [path] = folder.glob(f"{name}*/**/latest/training_state.pt")
    state = torch.load(path, weights_only=True)
    before = len(state["fingerprints"])
    state["fingerprints"] = {key: value for key, value in state["fingerprints"].items() if "shard" not in key}
    assert len(state["fingerprints"]) == before - 3
    torch.save(state, path)
    write_manifest(path.parent, state["step"], read_manifest(path.parent)["vision_base"])


def test_a_mapped_mixture_resumes_exactly(build, tmp_path: Path) -> None:
    for name, count in (("a", 30), ("b", 12)):
        write_images(tmp_path / name, _records(count))
    settings = dict(train_data=f"{tmp_path / 'a'}:1,{tmp_path / 'b'}:2", caption_sampling="one")
    straight = build("straight", **settings)
    straight.fit()
    assert not fit_until(build("resumed", **settings), 5)
    second = build("resumed", resume="auto", **settings)
    second.fit()
    same_checkpoint(straight.store.folder, second.store.folder)


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_records_are_counted_and_named_and_the_run_goes_on(build, tmp_path, caplog, streaming) -> None:
    write_images(tmp_path / "d", _records(32, broken=(3, 20)))
    settings = dict(
        train_data=str(tmp_path / "d"),
        streaming=streaming,
        caption_sampling="one",
        max_bad_fraction=0.2,
        max_steps=4,
        lora_warmup_steps=2,
        num_workers=1,
    )
    with caplog.at_level(logging.WARNING):
        straight = build("straight", **settings)
        straight.fit()
    assert straight.progress.bad_records == {"image cannot be decoded": 4}  # two of them in each of two epochs
    assert straight.progress.samples_seen == 64
    for name in ("record 3 (3.jpg)", "record 20 (20.jpg)"):
        assert sum(name in message for message in caplog.messages) == 1
    fit_until(build("resumed", **settings), 1)
    second = build("resumed", resume="auto", **settings)
    second.fit()
    assert second.progress.bad_records == {"image cannot be decoded": 4}
    same_checkpoint(straight.store.folder, second.store.folder)


def test_too_many_bad_records_stop_the_run(build, tmp_path: Path) -> None:
    write_images(tmp_path / "d", _records(32, broken=(3, 20)))
    trainer = build(train_data=str(tmp_path / "d"), caption_sampling="one")
    with pytest.raises(TooManyBadRecords, match=r"[12] x image cannot be decoded.*--max_bad_fraction 0.01") as stopped:
        trainer.fit()
    # What was trained until then is good: allowing more goes on with it.
    saved = find_checkpoint("auto", trainer.store.folder)
    assert saved is not None and f"after step {saved.step}." in str(stopped.value)
    assert saved.state["progress"]["bad_records"] == trainer.progress.bad_records
    trainer = build("second", train_data=str(tmp_path / "d"), caption_sampling="one", max_image_pixels=100)
    with pytest.raises(ValueError, match="more than max_image_pixels 100"):
        trainer.fit()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_shard_that_breaks_is_named_with_its_error(build, tmp_path: Path, monkeypatch, num_workers: int) -> None:
    monkeypatch.setattr("bitgen.data.shards._FIRST_WAIT", 0.0)
    table = pa.table({"image": [r.payload for r in _records(32)], "text": ["a picture"] * 32})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=8)
    trainer = build(train_data=str(tmp_path / "a.parquet"), streaming=True, num_workers=num_workers)
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(bytes(len(whole) // 2) + whole[len(whole) // 2 :])
    with pytest.raises(ValueError) as caught:
        trainer.fit()
    message = message_of(caught.value)
    assert re.match(r"Parquet shard .*a.parquet, row group \d cannot be read \(.+\): download or write", message)
    assert "Traceback" not in message


def test_the_share_is_taken_of_all_ranks_and_of_enough_samples(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    other = [Skipped("image cannot be decoded", "record 9 of rank 1")]
    monkeypatch.setattr("bitgen.training.skipped_records.gather_objects", lambda own, processes: [own, other])
    processes, progress = Processes(0, 2, torch.device("cpu")), Progress(samples_seen=64)
    records = SkippedRecords(0.01, epoch_samples=100_000)
    for count in range(1, 6):
        records.add([Skipped("no caption", "record 1 of rank 0")], progress, processes)
        assert progress.bad_records == {"no caption": count, "image cannot be decoded": count}
    assert caplog.text.count("record 9 of rank 1") == caplog.text.count("record 1 of rank 0") == 1
    with pytest.raises(TooManyBadRecords, match=r"12 records could not be used among 1,000 samples \(1.2%"):
        records.add([Skipped("no caption", "record 2 of rank 0")], progress, processes)
    progress.samples_seen = 5000
    records.add([], progress, processes)
    with pytest.raises(TooManyBadRecords):
        SkippedRecords(0.0, 10).add([], Progress(samples_seen=10**9), processes)


def test_settings_that_cannot_be(tiny_config) -> None:
    for settings, named in (
        (dict(streaming=True), "scenes cannot be streamed"),
        (dict(train_data="scenes:1,data/a:1"), "scenes cannot be mixed"),
        (dict(train_data="data/a:1,data/b"), "data/b has no weight"),
        (dict(train_data="data/a,data/b", val_data="data/b"), "training data itself"),
        (dict(max_bad_fraction=2), "max_bad_fraction"),
        (dict(shuffle_buffer=0), "shuffle_buffer"),
    ):
        with pytest.raises(ConfigError, match=named):
            tiny_config(**settings)
