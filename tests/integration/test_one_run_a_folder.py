"""A folder belongs to one process at a time: the second one says so and touches nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bitgen.feature_cache.description import CacheDescription
from bitgen.feature_cache.store import FeatureCache
from bitgen.machine.files import remove_leftovers
from bitgen.machine.locks import InUse, exclusive
from bitgen.machine.ranks import Processes
from bitgen.run import LOCK_FILE, folders_held
from support.runs import command, environment, wait_for_step
from support.warm import run_warm, start_warm

HOLD = """
import sys, time
from bitgen.machine.locks import exclusive
with exclusive(sys.argv[1], "it", "Wait."):
    print("held", flush=True)
    time.sleep(600)
"""


class Holder:
    """Another process that holds a lock until the block ends; ``process.pid`` is its number."""

    def __init__(self, lock: Path) -> None:
        self.lock = lock

    def __enter__(self) -> subprocess.Popen:
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        arguments = [sys.executable, "-c", HOLD, str(self.lock)]
        self.process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None and self.process.stdout.readline() == "held\n"
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != LOCK_FILE}


@pytest.mark.parametrize("resume", [None, "auto"])
@pytest.mark.parametrize("name", ["output_dir", "log_dir"])
def test_a_run_in_anothers_folder_ends_with_who_has_it(main, tiny_config, name: str, resume: str | None) -> None:
    output = tiny_config().output
    folder = Path(getattr(output, name))
    folder.mkdir(parents=True)
    (folder / ".tmp-step-00000001-abcdefgh").mkdir()  # which the other one may be writing
    before = everything(folder.parent)
    with Holder(folder / LOCK_FILE) as other:
        status, said = main(**({"resume": resume} if resume else {}))
    assert status == 2 and said.count("error: ") == 1 and "Traceback" not in said
    assert f"--{name} {folder} is in use by another process (process {other.pid} on {socket.gethostname()})" in said
    assert f"another --{name}" in said
    assert everything(folder.parent) == before and (folder / ".tmp-step-00000001-abcdefgh").is_dir()


def test_a_folder_is_free_when_its_run_is_done_or_killed(main, tiny_config) -> None:
    with Holder(Path(tiny_config().output.output_dir) / LOCK_FILE):
        pass
    assert main(max_steps=1)[0] == 0
    assert main(max_steps=1, resume="auto")[0] == 0


def test_one_folder_for_checkpoints_and_logs_is_no_conflict(main, tmp_path: Path) -> None:
    both = str(tmp_path / "both")
    assert main(max_steps=1, output_dir=both, log_dir=both + "/")[0] == 0


def test_a_running_run_keeps_a_second_one_out(tiny_config) -> None:
    config = tiny_config(max_steps=500)
    first = start_warm(command(config)[1:])
    try:
        wait_for_step(Path(config.output.log_dir), 2, first)
        second = run_warm(command(config, resume="auto")[1:])
        assert second.returncode == 2 and f"process {first.pid} on" in second.stderr
        first.send_signal(signal.SIGTERM)
        output, _ = first.communicate(timeout=60)
        assert first.returncode == 128 + signal.SIGTERM, output
    finally:
        first.kill()


def test_all_ranks_end_with_one_line(tiny_config) -> None:
    config = tiny_config()
    with Holder(Path(config.output.output_dir) / LOCK_FILE) as other:
        done = run_warm(command(config, use_ddp=True, num_gpus=2)[1:], processes=2)
    assert done.returncode != 0 and done.stderr.count("is in use by another process") == 1
    assert f"process {other.pid} on" in done.stderr


def test_a_feature_cache_is_filled_by_one_process_and_read_by_all(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "caches", CacheDescription("e", "p", "d", "fp32", "float32", (2, 1, 4)))
    assert not cache.is_complete()
    with Holder(cache.lock), pytest.raises(InUse, match="is in use by"), exclusive(cache.lock, "it", "Wait."):
        pass
    cache.create()
    (cache.folder / "done.bin").write_bytes(b"\1" * cache.description.shards)
    assert cache.is_complete()


def test_only_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    kept = ("a.tmp", ".hidden.tmp", ".partial-abcdefgh", "x.partial-abcdefgh", ".notes", "step-00000001")
    gone = 2**22 + 1  # more than any system's processes
    kept = (*kept, f".results.json.{os.getppid()}.tmp")  # of a process that lives
    left = (f".base.safetensors.{gone}.tmp", ".tokenizer.partial-ab_cd12e", f".metrics.jsonl.{os.getpid()}.tmp")
    for name in (*kept, *left):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


def test_where_there_are_no_locks_work_goes_on_with_a_warning(tmp_path: Path, monkeypatch, caplog) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with exclusive(tmp_path / "lock", "the folder", "Wait."):
        assert "the folder cannot be locked" in caplog.text


def test_what_a_killed_run_left_in_its_folders_is_removed_by_the_next(tiny_config, build) -> None:
    config = tiny_config("run", max_steps=1)
    for folder in map(Path, (config.output.output_dir, config.output.log_dir)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f".metrics.jsonl.{2**22 + 1}.tmp").write_text("half")
        (folder / f".results.json.{os.getppid()}.tmp").write_text("of a live writer")
    with folders_held(config.output, Processes(0, 1, torch.device("cpu"))):
        for folder in map(Path, (config.output.output_dir, config.output.log_dir)):
            assert sorted(os.listdir(folder)) == [".lock", f".results.json.{os.getppid()}.tmp"]
