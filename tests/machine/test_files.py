"""Folders that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from bitgen.data.whole_folder import check_output
from bitgen.export.target import checked_target
from bitgen.machine import files
from bitgen.machine.files import check_writable, replacing_folder, write_whole


def fill(folder: Path, content: str) -> None:
    (folder / "one").write_text(content)
    (folder / "below").mkdir()
    (folder / "below" / "two").write_text(content)


def held(folder: Path) -> list[str]:
    return [(folder / name).read_text() for name in ("one", "below/two")]


def test_a_new_folder_appears_at_the_end_with_its_parents(tmp_path: Path) -> None:
    target = tmp_path / "made" / "too" / "target"
    with replacing_folder(target) as new:
        fill(new, "new")
        assert not target.exists()
    assert held(target) == ["new", "new"] and list(target.parent.iterdir()) == [target]
    assert target.stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("stopped_by", [KeyboardInterrupt, OSError(errno.ENOSPC, "full")])
def test_what_was_there_stays_until_the_end_and_after_a_failure(tmp_path: Path, stopped_by: BaseException) -> None:
    target = tmp_path / "target"
    with replacing_folder(target) as new:
        fill(new, "old")
    with pytest.raises((KeyboardInterrupt, OSError)), replacing_folder(target) as new:
        fill(new, "new")
        raise stopped_by
    assert held(target) == ["old", "old"] and list(tmp_path.iterdir()) == [target]
    with replacing_folder(target) as new:
        fill(new, "new")
        assert held(target) == ["old", "old"]
    assert held(target) == ["new", "new"] and list(tmp_path.iterdir()) == [target]


def test_every_file_is_on_the_disk_before_the_folder_has_its_name(tmp_path: Path, monkeypatch) -> None:
    synced, target = [], tmp_path / "target"
    monkeypatch.setattr(files, "fsync", lambda path: synced.append((Path(path).name, target.exists())))
    with replacing_folder(target) as new:
        fill(new, "new")
    assert {name for name, is_there in synced if not is_there} == {"one", "below", "two", "target"}
    assert synced[-1] == (tmp_path.name, True)


def test_a_folder_that_is_not_to_be_replaced_is_left_alone_unless_it_is_empty(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with replacing_folder(target, replace=False) as new:
        fill(new, "first")
    with pytest.raises(OSError) as caught, replacing_folder(target, replace=False) as new:
        fill(new, "second")
    assert caught.value.errno in (errno.ENOTEMPTY, errno.EEXIST)
    assert held(target) == ["first", "first"] and list(tmp_path.iterdir()) == [target]


def test_without_an_exchange_a_rename_that_fails_puts_the_old_folder_back(tmp_path: Path, monkeypatch) -> None:
    target, rename = tmp_path / "target", os.rename
    monkeypatch.setattr(files, "_exchanged", lambda one, other: False)
    with replacing_folder(target) as new:
        fill(new, "old")

    def refuse(source, destination):
        if Path(source).name == "target" and Path(source) != target and "replaced" not in str(source):
            raise OSError(errno.EIO, "no")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError), replacing_folder(target) as new:
        fill(new, "new")
    monkeypatch.setattr(os, "rename", rename)
    assert held(target) == ["old", "old"] and list(tmp_path.iterdir()) == [target]
    with replacing_folder(target) as new:
        fill(new, "new")
    assert held(target) == ["new", "new"] and list(tmp_path.iterdir()) == [target]


def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for write in (lambda: write_whole(pipe, b"x"), lambda: check_writable(str(pipe))):
        with pytest.raises(ValueError, match="it is not a regular file"):
            write()
    assert pipe.is_fifo() and os.listdir(tmp_path) == ["pipe"]


def test_leftovers_of_a_process_that_lives_are_spared(tmp_path: Path) -> None:
    """An export into a run's folder, while the run starts and clears what killed ones left."""
    names = (f"{os.getppid()}-abcdefgh", "4194305-abcdefgh", "abcdefgh")
    living, dead, old = (tmp_path / f".export.partial-{name}" for name in names)
    for folder in (living, dead, old):
        folder.mkdir()
    files.remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [living]


def test_a_folder_under_way_is_named_for_its_process(tmp_path: Path) -> None:
    with replacing_folder(tmp_path / "export"):
        assert [path.name.startswith(f".export.partial-{os.getpid()}-") for path in tmp_path.iterdir()] == [True]


def test_of_a_link_the_folder_that_it_leads_to_is_replaced(tmp_path: Path) -> None:
    """Which may be on the larger disk; the link stays."""
    (tmp_path / "disk" / "data").mkdir(parents=True)
    link = tmp_path / "data"
    link.symlink_to(tmp_path / "disk" / "data")
    with replacing_folder(link) as new:
        assert new.parent.parent == tmp_path / "disk"
        fill(new, "new")
    assert link.is_symlink() and held(tmp_path / "disk" / "data") == ["new", "new"]


def test_the_top_of_a_disk_is_refused_before_the_work(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "mounted")
    (tmp_path / "mounted").mkdir()
    with pytest.raises(OSError, match="name a folder inside it"), replacing_folder(tmp_path / "mounted"):
        raise AssertionError("hours of work")
    with pytest.raises(ValueError, match="name a folder inside it|choose a folder inside it"):
        check_output(tmp_path / "mounted", False, "info.json")
    with pytest.raises(ValueError, match="name a folder inside it"):
        checked_target(str(tmp_path / "mounted"))
    with replacing_folder(tmp_path / "mounted" / "inside") as new:
        fill(new, "new")
