"""Phase 1 from a feature cache: the same losses, no tower, and nothing stale; through the boundary and over resumes."""

from __future__ import annotations

import errno
import importlib.util
import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from bitgen.checkpoint.format import CheckpointError
from bitgen.config import ConfigError
from bitgen.data.bad_records import BadRecord
from bitgen.data.dataset import PairDataset
from bitgen.data.records import Record
from bitgen.feature_cache import description
from bitgen.feature_cache import store as feature_cache
from bitgen.feature_cache.description import CacheDescription
from bitgen.feature_cache.pairs import CachedSplit
from bitgen.feature_cache.source import _no_room
from bitgen.feature_cache.store import CacheError, FeatureCache
from bitgen.tasks.stage1_validation import HeldOut
from bitgen.trained import open_model
from support.data import encode, write_images
from support.runs import REPOSITORY, command, fit_until, same_checkpoint, scalars, two_ranks

COLOURS = ("red", "green", "blue", "grey")


def write_noise(
    folder: Path, count: int, seed: int, overwrite: bool = False, damaged: int | None = None, wide: int | None = None
) -> None:
    """Noise over a colour, one or two captions an image; the file of image ``damaged`` is cut short, ``wide`` large."""
    random = np.random.default_rng(seed)
    records = []
    for number in range(count):
        pixels = random.integers(0, 128, (30, 400 if number == wide else 40, 3), dtype=np.uint8)
        pixels[..., number % 3] += 127
        captions = [f"a {COLOURS[number % 3]} image number {number}", f"noise over {COLOURS[number % 3]}"]
        payload = encode(Image.fromarray(pixels))[: 200 if number == damaged else None]
        records.append(Record(f"{number}.png", payload, captions[: 1 + number % 2]))
    write_images(folder, records, overwrite=overwrite)


@pytest.fixture
def images(tmp_path: Path) -> dict[str, str]:
    """Settings of 30 training images, 45 captions."""
    write_noise(tmp_path / "train", 30, seed=1)
    return {"train_data": str(tmp_path / "train"), "grad_accum_steps": 1}


@pytest.fixture
def held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Settings of 10 held-out images, of which no pictures are drawn."""
    write_noise(tmp_path / "val", 10, seed=2)
    monkeypatch.setattr(HeldOut, "_pictures", lambda *_: {})
    return {"val_data": str(tmp_path / "val")}


@pytest.fixture
def cached(images: dict[str, str], tmp_path: Path) -> dict[str, object]:
    return {**images, "feature_cache": str(tmp_path / "cache"), "feature_cache_dtype": "float32"}


def cache_folders(parent: str | object) -> list[Path]:
    return sorted(path.parent for path in Path(str(parent)).glob("*/cache.json"))


@pytest.mark.parametrize(
    ("dtype", "precision", "tolerance"),
    [("float32", "fp32", 1e-5), ("bf16", "fp32", 1e-2), ("bf16", "bf16", 1e-2), ("int8", "fp32", 1e-2)],
)
def test_phase_1_losses_agree_with_the_live_ones(build, images, cached, dtype, precision, tolerance) -> None:
    live = build("live", **images, precision=precision, max_steps=4)
    live.fit()
    stored = build("cached", **{**cached, "feature_cache_dtype": dtype}, precision=precision, max_steps=4)
    stored.fit()
    for name in ("train/loss", "train/contrastive_loss"):
        expected, found = scalars(live, name), scalars(stored, name)
        assert list(expected) == [1, 2, 3, 4]
        for step in range(1, 5):
            assert found[step] == pytest.approx(expected[step], rel=tolerance), (name, step)


def test_an_image_that_cannot_be_read_is_replaced_as_in_a_live_run(build, images, cached, caplog) -> None:
    write_noise(Path(images["train_data"]), 30, seed=1, overwrite=True, damaged=7)
    allowed = {"max_bad_fraction": 0.5, "num_workers": 0}
    live = build("live", **images, **allowed)
    live.fit()
    from_cache = build("cached", **cached, **allowed)
    from_cache.fit()
    assert scalars(from_cache) == pytest.approx(scalars(live), rel=1e-5)
    met = sum(live.progress.bad_records.values())
    assert met > 0 and sum(from_cache.progress.bad_records.values()) == met
    assert "record 7 (7.png) cannot be read, so it gets no features" in caplog.text


def test_a_raised_limit_of_pixels_reads_what_was_refused(build, cached) -> None:
    write_noise(Path(str(cached["train_data"])), 30, seed=1, overwrite=True, wide=7)
    for limit, bad in ((2_000, [7]), (20_000, [])):
        run = build(f"limit{limit}", **cached, max_steps=1, max_bad_fraction=0.5, max_image_pixels=limit)
        run.fit()
        cache = run.source.caches.pairs.cache
        assert [row for row in range(30) if cache.is_bad(row)] == bad


def test_a_held_out_image_without_features_is_never_read(cached, tmp_path) -> None:
    """Not even where it can be read by now: its features are those of a grey picture."""
    dataset = SimpleNamespace(
        image_tensor=lambda row: torch.zeros(3, 2, 2), record_of_image=str, captions_of=None, tokens=None
    )
    cache = SimpleNamespace(is_bad=bool, folder=tmp_path, description=SimpleNamespace(shape=(2, 1, 1)))
    with pytest.raises(BadRecord, match=f"1 could not be read when .* remove {tmp_path}"):
        CachedSplit(dataset, cache).image_tensor(1)


def test_validation_reads_a_cache_too_and_phase_2_goes_on_from_the_same_place(build, images, cached, held_out) -> None:
    live = build("live", **images, **held_out, max_steps=5)
    live.fit()
    stored = build("cached", **cached, **held_out, max_steps=5)
    stored.fit()
    expected, found = scalars(live, "val/contrastive_loss"), scalars(stored, "val/contrastive_loss")
    assert list(found) == list(expected) and 4 in found
    for step, value in expected.items():
        assert found[step] == pytest.approx(value, rel=1e-4), step
    assert scalars(stored)[5] == pytest.approx(scalars(live)[5], rel=1e-4)


def test_phase_1_neither_runs_nor_holds_the_tower_nor_decodes_an_image(build, cached, monkeypatch) -> None:
    build("filling", **cached, max_steps=1).fit()
    tower_sizes: dict[int, set[int]] = {}
    ran: list[int] = []
    decoded: list[int] = []
    trainer = build("reading", **cached, max_steps=6)
    encoder = trainer.objective.model.vision_encoder
    encoder.register_forward_hook(lambda *_: ran.append(trainer.phase))
    image_tensor = PairDataset.image_tensor

    def spy(self: PairDataset, *arguments: object) -> torch.Tensor:
        decoded.append(trainer.phase if self is trainer.source.dataset else 0)
        return image_tensor(self, *arguments)

    monkeypatch.setattr(PairDataset, "image_tensor", spy)
    clamp = trainer.objective.clamp_temperature_

    def look() -> None:
        tower_sizes.setdefault(trainer.phase, set()).add(sum(p.numel() for _, p in encoder.base_parameters()))
        clamp()

    trainer.objective.clamp_temperature_ = look
    trainer.fit()
    assert set(ran) == {2} and 1 not in decoded and 2 in decoded
    assert tower_sizes[1] == {0} and min(tower_sizes[2]) > 0
    live = build("live", **{**cached, "feature_cache": "off"}, max_steps=1)
    for (name, base), (_, same) in zip(
        encoder.base_parameters(), live.objective.model.vision_encoder.base_parameters(), strict=True
    ):
        assert torch.equal(base, same), name
    assert open_model(trainer.store.folder).model.config.feature_pool is None


@pytest.mark.parametrize("stop_at", [2, 4, 6], ids=["inside phase 1", "at the boundary", "inside phase 2"])
def test_resuming_changes_nothing_and_computes_nothing_again(
    build, cached, held_out, monkeypatch, stop_at: int
) -> None:
    settings = {**cached, "feature_cache_dtype": "bf16", "caption_sampling": "one"}
    if stop_at == 4:  # with a validation owed to phase 1, and data workers that read the memory map
        settings |= {**held_out, "num_workers": 1}
    straight = build("straight", **settings)
    straight.fit()
    fit_until(build("resumed", **settings), stop_at)
    second = build("resumed", resume="auto", **settings)
    monkeypatch.setattr(feature_cache.FeatureCache, "write_shard", None)  # a call would raise
    second.fit()
    same_checkpoint(straight.store.folder, second.store.folder)
    assert scalars(straight) == scalars(second)


def test_a_frozen_run_never_needs_the_tower_again(build, cached) -> None:
    trainer = build(**cached, vision_tuning="frozen", max_steps=4)
    trainer.fit()
    assert trainer.phase == 1 and not sum(p.numel() for p in trainer.objective.model.vision_encoder.parameters())
    assert sum(p.numel() for p in open_model(trainer.store.folder).model.vision_encoder.parameters())


def test_full_tuning_reads_the_cache_and_keeps_its_weights(build, cached) -> None:
    trainer = build(**cached, vision_tuning="full", save_steps=2, max_steps=5)
    trainer.fit()
    assert trainer.phase == 2 and cache_folders(cached["feature_cache"])
    assert sum(p.numel() for p in open_model(trainer.store.folder).model.vision_encoder.parameters())


def test_a_pooled_cache_pools_in_phase_2_and_afterwards(build, cached, monkeypatch) -> None:
    monkeypatch.setattr("bitgen.config.stage1.FEATURE_GRIDS", (2,))  # the tiny tower's grid is 4 x 4
    settings = {**cached, "feature_cache_pool": 2}
    trainer = build("cached", **settings, max_steps=6)
    assert trainer.objective.model.config.image_tokens == 4
    trainer.fit()
    live = build("live", **{**settings, "feature_cache": "off"}, max_steps=6)
    live.fit()
    for step in (1, 4, 6):
        assert scalars(trainer)[step] == pytest.approx(scalars(live)[step], rel=1e-4)
    loaded = open_model(trainer.store.folder).model
    pixels = torch.randn(2, 3, 28, 28)
    patches = loaded.vision_encoder(pixels).patches.unflatten(1, (4, 4))
    by_hand = patches.unflatten(1, (2, 2)).unflatten(3, (2, 2)).mean(dim=(2, 4)).flatten(1, 2)
    torch.testing.assert_close(loaded.patch_features(pixels), by_hand)
    with pytest.raises(CheckpointError, match="feature_cache_pool was 2 and is None"):
        build("cached", **cached, resume="auto")


@pytest.mark.parametrize("change", ["weights", "size", "data", "precision", "dtype"], ids=lambda name: f"other {name}")
def test_a_stale_cache_is_never_read(build, cached, tmp_path: Path, caplog, change: str) -> None:
    build("first", **cached, max_steps=1).fit()
    before = cache_folders(cached["feature_cache"])
    other = {
        "weights": {"seed": 7},
        "size": {"image_size": 35},
        "precision": {"precision": "bf16"},
        "dtype": {"feature_cache_dtype": "bf16"},
        "data": {},
    }[change]
    if change == "data":
        write_noise(tmp_path / "train", 30, seed=3, overwrite=True)
    with caplog.at_level(logging.INFO):
        build("second", **{**cached, **other}, max_steps=1).fit()
    new = set(cache_folders(cached["feature_cache"])) - set(before)
    assert len(new) == 1
    assert change == "data" or "is not of this run: other" in caplog.text


def test_other_lora_settings_share_a_cache(build, cached) -> None:
    build("first", **cached, max_steps=1).fit()
    build("second", **cached, lora_alpha=2, lora_dropout=0.0, max_steps=1).fit()
    assert len(cache_folders(cached["feature_cache"])) == 1


def test_a_killed_filling_goes_on_where_it_was(build, cached, monkeypatch) -> None:
    monkeypatch.setattr(description, "_SHARD_BYTES", 4 * 16 * 32 * 4)  # four images a shard
    write = feature_cache.FeatureCache.write_shard
    written: list[int] = []

    def dying(self: feature_cache.FeatureCache, shard: int, *content: torch.Tensor) -> None:
        if len(written) == 3:
            raise RuntimeError("killed")
        written.append(shard)
        write(self, shard, *content)

    monkeypatch.setattr(feature_cache.FeatureCache, "write_shard", dying)
    with pytest.raises(RuntimeError, match="killed"):
        build("first", **cached, max_steps=2).fit()
    assert written == [0, 1, 2]

    def noting(self: feature_cache.FeatureCache, shard: int, *content: torch.Tensor) -> None:
        written.append(shard)
        write(self, shard, *content)

    monkeypatch.setattr(feature_cache.FeatureCache, "write_shard", noting)
    second = build("second", **cached, max_steps=2)
    second.fit()
    assert written == [0, 1, 2, 3, 4, 5, 6, 7], "30 images in 8 shards"
    live = build("live", **{**cached, "feature_cache": "off"}, max_steps=2)
    live.fit()
    assert scalars(second)[2] == pytest.approx(scalars(live)[2], rel=1e-5)


def test_a_disk_that_fills_up_is_an_error_that_keeps_what_is_finished(build, cached, monkeypatch) -> None:
    monkeypatch.setattr(description, "_SHARD_BYTES", 4 * 16 * 32 * 4)
    pwrite, calls = os.pwrite, []

    def full(descriptor: int, content: memoryview, offset: int) -> int:
        calls.append(offset)
        if len(calls) == 9:  # the third shard; each has features, bad images, checksums and its mark
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, content, offset)

    monkeypatch.setattr(os, "pwrite", full)
    trainer = build("first", **cached, max_steps=1)
    with pytest.raises(CacheError, match="No space left.*Free .* GB .*what is finished stays"):
        trainer.fit()
    [folder] = cache_folders(cached["feature_cache"])
    assert (folder / "done.bin").read_bytes() == bytes([1, 1, 0, 0, 0, 0, 0, 0])


def test_a_disk_that_is_too_small_is_refused_with_the_numbers(build, cached, images, monkeypatch, caplog) -> None:
    small = SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(feature_cache, "shutil", small)  # the cache's disk, not that of checkpoints
    with pytest.raises(CacheError, match="needs 0.00 GB .30 images x 16 x 32 x float32. and .* 0.00 GB free.*pool 7"):
        build("explicit", **cached, max_steps=1).fit()
    assert not cache_folders(cached["feature_cache"])
    with caplog.at_level(logging.WARNING):
        automatic = build("automatic", **images, feature_cache="auto", lora_warmup_steps=6)
        automatic.fit()
    assert "feature cache off" in caplog.text and automatic.progress.step == 8


def test_features_that_are_not_finite_are_named(build, cached, monkeypatch) -> None:
    image_tensor = PairDataset.image_tensor

    def broken(self: PairDataset, row: int, *arguments: object) -> torch.Tensor:
        return image_tensor(self, row, *arguments) * (torch.nan if row == 5 else 1)

    monkeypatch.setattr(PairDataset, "image_tensor", broken)
    with pytest.raises(CacheError, match=r"record 5 \(5.png\) has NaN"):
        build(**cached, max_steps=1).fit()


def test_a_cache_renamed_over_another_or_cut_short_is_refused(build, cached) -> None:
    build("first", **cached, max_steps=1).fit()
    [folder] = cache_folders(cached["feature_cache"])
    features, sidecar = folder / "features.bin", folder / "cache.json"
    content = features.read_bytes()
    features.write_bytes(content[:-1])
    with pytest.raises(CacheError, match="features.bin is missing or cut short"):
        build("second", **cached, max_steps=1).fit()
    features.write_bytes(content)
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "encoder": "of somebody else"}))
    with pytest.raises(CacheError, match="a cache of something else .its encoder differ"):
        build("third", **cached, max_steps=1).fit()
    with pytest.raises(CacheError, match="is one cache itself"):
        build("fourth", **{**cached, "feature_cache": str(folder)}, max_steps=1).fit()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"image_augmentation": True}, "image_augmentation shows an image differently"),
        ({"train_data": "scenes"}, "scenes are drawn anew"),
        ({"lora_warmup_steps": 0}, "no phase 1"),
        ({"feature_cache": "auto", "lora_warmup_steps": 2}, "shows 16 pairs of 30 images"),
    ],
)
def test_where_it_cannot_help_it_is_off_and_says_so(build, cached, caplog, settings: dict, said: str) -> None:
    with caplog.at_level(logging.WARNING):
        trainer = build(**{**cached, "max_steps": 3, **settings})
        trainer.fit()
    assert "feature cache off: " in caplog.text and said in caplog.text
    assert not cache_folders(cached["feature_cache"]) and trainer.progress.step == 3


def test_two_processes_share_the_work_and_train_on(cached, tiny_config, build, tmp_path: Path) -> None:
    steps = dict(batch_size=4, max_steps=6, lora_warmup_steps=3, learning_rate=1e-2)
    config = tiny_config("two", **{**cached, **steps})
    one, other = two_ranks(config, tmp_path / "two")
    assert one["phase"] == other["phase"] == 2
    assert all(torch.equal(value, other["parameters"][name]) for name, value in one["parameters"].items())
    build("alone", **{**cached, "feature_cache": str(tmp_path / "alone")}, max_steps=1).fit()
    [shared], [alone] = cache_folders(cached["feature_cache"]), cache_folders(tmp_path / "alone")
    assert shared.name == alone.name
    contents = [torch.from_file(str(folder / "features.bin"), size=30 * 16 * 32) for folder in (shared, alone)]
    torch.testing.assert_close(*contents)


def test_the_script_computes_what_a_run_then_finds(build, cached, tiny_config, monkeypatch) -> None:
    _, _, *flags = command(tiny_config("run", **{**cached, "max_steps": 1}))
    path = REPOSITORY / "data_prep" / "cache_features.py"
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location("cache_features_under_test", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(flags)
    assert len(cache_folders(cached["feature_cache"])) == 1
    monkeypatch.setattr(feature_cache.FeatureCache, "write_shard", None)  # a call would raise
    build("run", **cached, max_steps=1).fit()
    with pytest.raises(ConfigError, match="--feature_cache DIR"):
        script.main([*flags, "--feature_cache", "off"])
    with pytest.raises(ConfigError, match="nothing to cache: the built-in scenes"):
        script.main([*flags, "--train_data", "scenes"])


def test_a_cache_of_no_pictures_is_whole_at_once(tmp_path) -> None:
    """Of conversations that are text alone; also when it is opened again."""
    for _ in range(2):
        cache = FeatureCache(tmp_path, CacheDescription("e", "p", "d", "fp32", "float32", (0, 1, 4)))
        cache.create()
        assert cache.missing_bytes() == 0 and not cache.missing_shards()


def test_the_caches_of_a_run_have_to_fit_together(tmp_path, monkeypatch) -> None:
    """Each alone would fit: the disk would be full when hours of the second one are done."""
    monkeypatch.setattr(feature_cache, "shutil", SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=10**6)))
    train, val, whole = (
        FeatureCache(tmp_path, CacheDescription(name, "p", name, "fp32", "float32", (images, 1, 1000)))
        for name, images in (("train", 175), ("val", 175), ("whole", 350))
    )
    assert _no_room([train]) is None and _no_room([val]) is None
    assert "feature cache" in str(_no_room([whole]))
    assert "go into others of this run" in str(_no_room([train, val]))
