"""Checkpoint folders: whole or absent, verified, enough of them, and never at the cost of the ones before."""

import errno
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from bitgen.checkpoint import manifest
from bitgen.checkpoint import store as checkpoint_store
from bitgen.checkpoint.format import (
    checkpoint_folders,
    find_checkpoint,
    load_tensors,
    read_checkpoint,
    read_tensors,
    resolve_checkpoint,
    step_folder,
)
from bitgen.checkpoint.manifest import EMA_FILE, MODEL_FILE, STATE_FILE, CheckpointError, CheckpointFiles, verify
from bitgen.checkpoint.store import CheckpointStore, mend_links
from bitgen.config import Config
from bitgen.machine import files

FILES = {"config.yaml": Config().to_yaml(), "config.json": '{"model_type": "bitgen"}'}


def save(store: CheckpointStore, step: int, is_best: bool = False) -> Path:
    weights = {"weight": torch.full((3,), float(step))}
    state = {"step": step, "nested": {"moments": torch.ones(2) * step, "list": [1, 2.5, None, "x"]}}
    return store.save(step, weights, state, FILES, is_best=is_best)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "run", keep=2)


def test_what_is_saved_is_read_back_with_weights_only(store: CheckpointStore) -> None:
    checkpoint = read_checkpoint(save(store, 7))
    assert checkpoint.step == 7
    assert torch.equal(checkpoint.state["nested"]["moments"], torch.full((2,), 7.0))
    assert checkpoint.state["nested"]["list"] == [1, 2.5, None, "x"]
    assert names(checkpoint.path) == ["config.json", "config.yaml", "manifest.json", MODEL_FILE, STATE_FILE]


def test_links_are_relative_and_point_to_the_newest_and_the_best(store: CheckpointStore) -> None:
    save(store, 1, is_best=True)
    save(store, 2)
    assert os.readlink(store.folder / "latest") == step_folder(2)
    assert os.readlink(store.folder / "best") == step_folder(1)
    assert resolve_checkpoint(store.folder).name == step_folder(1)
    assert resolve_checkpoint(store.folder / step_folder(2)).name == step_folder(2)


@pytest.mark.parametrize("lost", ["nothing", "the best step", "all steps", "a file of the best step"])
def test_links_that_a_copy_made_folders_of_are_links_again(tmp_path: Path, lost: str) -> None:
    """As `cp -rL`, and tools for object storage, copy a run."""
    store = CheckpointStore(tmp_path / "run", keep=2)
    for step in (1, 2):
        save(store, step, is_best=step == 1)
    copy = tmp_path / "copy"
    shutil.copytree(store.folder, copy)
    assert not (copy / "best").is_symlink()
    for step in {"the best step": [1], "all steps": [1, 2]}.get(lost, []):
        shutil.rmtree(copy / step_folder(step))
    if lost.startswith("a file"):
        (copy / step_folder(1) / MODEL_FILE).unlink()
    mend_links(copy)
    assert (os.readlink(copy / "best"), os.readlink(copy / "latest")) == (step_folder(1), step_folder(2))
    assert find_checkpoint("auto", copy).step == 2
    again = CheckpointStore(copy, keep=2)
    for step in (3, 4):
        save(again, step)
    assert [path.name for path in checkpoint_folders(copy)] == [step_folder(step) for step in (4, 3, 1)]
    assert read_checkpoint(copy / "best").step == 1
    assert (copy / f"damaged-{step_folder(1)}").exists() == lost.startswith("a file")


def test_a_folder_in_place_of_a_link_that_holds_no_checkpoint_is_left_alone(store: CheckpointStore) -> None:
    save(store, 1, is_best=True)
    (store.folder / "best").unlink()
    (store.folder / "best").mkdir()
    (store.folder / "best" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="best was a link .* Remove it"):
        mend_links(store.folder)
    assert (store.folder / "best" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("fault", ["a newer format", "the base of both", "a file of all"])
def test_no_copy_is_removed_where_nobody_knows_which_is_whole(tmp_path: Path, fault: str, monkeypatch) -> None:
    store = CheckpointStore(tmp_path / "run", keep=2)
    base = store.store_base({"frozen": torch.ones(3)})
    store.save(1, {"weight": torch.ones(3)}, {"step": 1}, FILES, base, is_best=True)
    copy = tmp_path / "copy"
    shutil.copytree(store.folder, copy)
    if fault == "a newer format":
        monkeypatch.setattr(manifest, "FORMAT_VERSION", 0)
    elif fault == "the base of both":
        (copy / f"vision_base-{base}.safetensors").unlink()
    else:
        for folder in (copy / "best", copy / "latest", copy / step_folder(1)):
            (folder / MODEL_FILE).unlink()
    before = sorted(path.name for path in copy.rglob("*") if path.is_file())
    if fault == "a newer format":
        with pytest.raises(CheckpointError, match="use the version that wrote it"):
            mend_links(copy)
        assert (copy / "best").is_dir()
    else:
        mend_links(copy)
        assert {path.name for path in copy.glob("damaged-*")} == {"damaged-best", "damaged-latest"}
        assert (copy / step_folder(1)).is_dir() and not (copy / "best").exists()
    assert sorted(path.name for path in copy.rglob("*") if path.is_file()) == before


def test_retention_keeps_the_newest_and_the_best(store: CheckpointStore) -> None:
    for step in range(1, 7):
        save(store, step, is_best=step == 2)
    assert [p.name for p in checkpoint_folders(store.folder)] == [step_folder(s) for s in (6, 5, 2)]


def test_leftovers_of_a_killed_save_are_removed_at_the_start_and_never_resumed(store: CheckpointStore) -> None:
    save(store, 1)
    for leftover in (".tmp-step-00000002", ".tmp-chck_1M-ab12cd", ".deleting-step-00000000"):
        (store.folder / leftover).mkdir()
        (store.folder / leftover / "model.safetensors").write_bytes(b"half")
    assert find_checkpoint("auto", store.folder).step == 1
    CheckpointStore(store.folder, keep=2)
    assert names(store.folder) == ["latest", step_folder(1)]


def crash(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def home_of(name: str) -> object:
    """The module whose function a save calls."""
    return {"fsync": files, "file_hash": manifest}.get(name, checkpoint_store)


@pytest.mark.parametrize("at", ["save_file", "file_hash", "fsync"])
def test_a_crash_while_saving_leaves_the_one_before(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """KeyboardInterrupt stands for a kill: no handler of ours catches it."""
    save(store, 1)
    monkeypatch.setattr(home_of(at), at, crash)
    with pytest.raises(KeyboardInterrupt):
        save(store, 2)
    monkeypatch.undo()
    assert find_checkpoint("auto", store.folder).step == 1
    CheckpointStore(store.folder, keep=2)
    assert names(store.folder) == ["latest", step_folder(1)]


def test_a_crash_between_rename_and_links_leaves_the_new_one_usable(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 1)
    monkeypatch.setattr(checkpoint_store, "_link", crash)
    with pytest.raises(KeyboardInterrupt):
        save(store, 2)
    assert find_checkpoint("auto", store.folder).step == 2


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOSPC, "free space"), (errno.EACCES, "writable"), (errno.EIO, "remove the cause")]
)
@pytest.mark.parametrize("at", ["save_file", "file_hash", "fsync"])
def test_a_failing_disk_is_a_clear_error_that_costs_nothing(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str, at: str
) -> None:
    save(store, 1, is_best=True)

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(home_of(at), at, fail)
    with pytest.raises(CheckpointError, match=remedy) as caught:
        save(store, 2)
    monkeypatch.undo()
    assert "step-00000002" in str(caught.value) and "--resume auto" in str(caught.value)
    assert names(store.folder) == ["best", "latest", step_folder(1)]
    verify(store.folder / step_folder(1))


@pytest.mark.parametrize("large", ["weights", "state"])
def test_writers_that_run_out_of_room(store: CheckpointStore, large: str) -> None:
    """A limit on file size fails inside safetensors' and torch's own writers, as a full disk does."""
    save(store, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        tensors = {"weights": torch.zeros(3), "state": torch.zeros(3)}
        tensors[large] = torch.zeros(200_000)
        with pytest.raises(CheckpointError, match="cannot write checkpoint .*step-00000002"):
            store.save(2, {"weight": tensors["weights"]}, {"step": 2, "t": tensors["state"]}, FILES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(store.folder) == ["latest", step_folder(1)]
    verify(save(store, 2))


@pytest.mark.parametrize("first", [True, False])
def test_too_little_room_is_seen_before_anything_is_written(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    if not first:
        save(store, 1)
    before = names(store.folder)
    usage = checkpoint_store.shutil.disk_usage(store.folder)
    monkeypatch.setattr(checkpoint_store.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(CheckpointError, match="the disk is full .*free space on the disk") as caught:
        save(store, 2)
    assert ("start again" if first else "--resume auto") in str(caught.value)
    with pytest.raises(CheckpointError, match="the disk is full"):
        store.store_base({"tower": torch.zeros(100)})
    assert names(store.folder) == before


def test_a_library_that_does_not_say_why_it_cannot_write(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk filled up after the look at it: torch's writer says nothing of a disk."""
    free = iter([10**9, 10])
    usage = checkpoint_store.shutil.disk_usage(store.folder)
    monkeypatch.setattr(checkpoint_store.shutil, "disk_usage", lambda _: usage._replace(free=next(free)))

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError, match="the disk is full"):
        save(store, 1)


def test_an_output_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="--output_dir .*file"):
        CheckpointStore(tmp_path / "file" / "run", keep=2)


def damage(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "how"),
    [(name, how) for name in (MODEL_FILE, STATE_FILE) for how in ("missing", "cut", "one bit")]
    + [("manifest.json", "missing"), ("manifest.json", "cut")],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(
    store: CheckpointStore, name: str, how: str
) -> None:
    save(store, 1)
    damage(save(store, 2) / name, how)
    found = find_checkpoint("auto", store.folder)
    assert found.step == 1
    [(folder, problem)] = found.damaged.items()
    assert folder.name == step_folder(2) and name in problem


def test_when_all_are_damaged_the_error_lists_them(store: CheckpointStore) -> None:
    for step in (1, 2):
        damage(save(store, step) / STATE_FILE, "cut")
    with pytest.raises(CheckpointError, match="None of the 2 checkpoints"):
        find_checkpoint("auto", store.folder)


def test_resuming_by_path(store: CheckpointStore, tmp_path: Path) -> None:
    save(store, 1)
    save(store, 2)
    assert find_checkpoint(str(store.folder), tmp_path).step == 2
    assert find_checkpoint(str(store.folder / step_folder(1)), tmp_path).step == 1
    assert find_checkpoint(str(store.folder / "latest"), tmp_path).step == 2
    with pytest.raises(CheckpointError, match="no such folder"):
        find_checkpoint(str(tmp_path / "nothing"), tmp_path)
    assert find_checkpoint("auto", tmp_path / "nothing") is None


def test_a_damaged_one_is_set_aside_out_of_the_count(store: CheckpointStore) -> None:
    save(store, 1)
    damaged = save(store, 2)
    store.set_aside(damaged)
    assert [p.name for p in checkpoint_folders(store.folder)] == [step_folder(1)]
    assert (store.folder / "damaged-step-00000002").is_dir()


def test_saving_a_step_again_replaces_it(store: CheckpointStore) -> None:
    damage(save(store, 1) / MODEL_FILE, "cut")
    verify(save(store, 1))


def test_weights_of_other_shapes_are_refused_by_name() -> None:
    model = nn.Linear(3, 2)
    expected = set(model.state_dict())
    tensors = {"weight": torch.zeros(2, 4), "extra": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        load_tensors(model, tensors, expected, Path("run/step-00000001/model.safetensors"))
    for part in ("bias is missing", "extra is unknown", r"weight is [2, 4] there and [2, 3] here"):
        assert part in str(caught.value)


def test_the_base_is_stored_once_under_its_hash(store: CheckpointStore) -> None:
    base = {"b": torch.arange(4.0), "a": torch.ones(2)}
    name = store.store_base(base)
    written = (store.folder / f"vision_base-{name}.safetensors").stat().st_mtime_ns
    assert store.store_base(dict(reversed(base.items()))) == name
    assert (store.folder / f"vision_base-{name}.safetensors").stat().st_mtime_ns == written
    assert store.store_base({"b": torch.arange(4.0), "a": torch.zeros(2)}) != name
    assert store.store_base({}) is None


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_milestone_outlives_retention(store: CheckpointStore) -> None:
    saved = contents(save(store, 1))
    store.keep_as(1, "chck_1M")
    for step in range(2, 6):
        save(store, step)
    assert step_folder(1) not in names(store.folder)
    assert contents(store.folder / "chck_1M") == saved
    assert read_checkpoint(store.folder / "chck_1M").step == 1
    # It is none of the steps: neither resumed nor counted.
    assert [p.name for p in checkpoint_folders(store.folder)] == [step_folder(s) for s in (5, 4)]
    assert find_checkpoint("auto", store.folder).step == 5
    CheckpointStore(store.folder, keep=2)
    assert contents(store.folder / "chck_1M") == saved


def test_a_milestone_takes_no_room_and_is_kept_once(store: CheckpointStore) -> None:
    save(store, 1)
    save(store, 2)
    store.keep_as(1, "chck_1M")
    assert (store.folder / "chck_1M" / MODEL_FILE).samefile(store.folder / step_folder(1) / MODEL_FILE)
    store.keep_as(2, "chck_1M")
    assert read_checkpoint(store.folder / "chck_1M").step == 1


def test_a_milestone_that_shared_damage_with_its_checkpoint_is_kept_anew(store: CheckpointStore) -> None:
    save(store, 1)
    store.keep_as(1, "chck_1M")
    with open(store.folder / "chck_1M" / MODEL_FILE, "r+b") as file:  # the same file, for both are links to it
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    with pytest.raises(CheckpointError):
        verify(store.folder / step_folder(1))
    (store.folder / step_folder(1)).rename(store.folder / "aside")
    saved = contents(save(store, 1))
    store.keep_as(1, "chck_1M")
    assert contents(store.folder / "chck_1M") == saved


def test_averages_of_no_step_yet_are_averages(store: CheckpointStore) -> None:
    """A run that diverged at its start is no run without averages, and can be resumed."""
    folder = store.save(1, {"w": torch.zeros(2)}, {"step": 1}, {}, averaged={})
    assert EMA_FILE in CheckpointFiles(folder)
    with read_tensors(CheckpointFiles(folder), EMA_FILE) as found:
        assert not found


def test_a_milestone_without_hard_links_is_a_copy_on_disk(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = contents(save(store, 1))
    synced: list[str] = []
    fsync = files.fsync
    monkeypatch.setattr(files, "fsync", lambda path: (synced.append(Path(path).name), fsync(path)))

    def unsupported(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", unsupported)
    store.keep_as(1, "chck_1M")
    assert contents(store.folder / "chck_1M") == saved
    assert not (store.folder / "chck_1M" / MODEL_FILE).samefile(store.folder / step_folder(1) / MODEL_FILE)
    assert set(saved) <= set(synced), "what is copied must be on the disk before it gets its name"


@pytest.mark.parametrize("at", ["_link_or_copy", "fsync"])
def test_a_crash_while_keeping_a_milestone_leaves_nothing_half_done(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    save(store, 1)
    monkeypatch.setattr(home_of(at), at, crash)
    with pytest.raises(KeyboardInterrupt):
        store.keep_as(1, "chck_1M")
    monkeypatch.undo()
    assert not (store.folder / "chck_1M").exists()
    again = CheckpointStore(store.folder, keep=2)
    assert names(store.folder) == ["latest", step_folder(1)]
    again.keep_as(1, "chck_1M")
    verify(store.folder / "chck_1M")


@pytest.mark.parametrize(("number", "remedy"), [(errno.ENOSPC, "free space"), (errno.EIO, "remove the cause")])
@pytest.mark.parametrize("at", ["copy2", "fsync"])
def test_a_disk_that_fails_a_milestone_is_a_clear_error(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str, at: str
) -> None:
    save(store, 1)

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr(checkpoint_store.shutil if at == "copy2" else files, at, fail)
    with pytest.raises(CheckpointError, match=remedy) as caught:
        store.keep_as(1, "chck_1M")
    monkeypatch.undo()
    assert "chck_1M" in str(caught.value) and "--resume auto" in str(caught.value)
    assert names(store.folder) == ["latest", step_folder(1)]


@pytest.mark.parametrize("name", ["step-²", "step-٣", "step-", "step-1x", "step-00000001.old"])
def test_other_folders_are_no_checkpoints(tmp_path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert checkpoint_folders(tmp_path) == []
