"""A lock is let go with the process that took it, whatever it has started."""

from __future__ import annotations

import os
import signal
import time

import pytest

from bitgen.machine.locks import InUse, exclusive


def test_a_killed_process_holds_no_lock_though_its_child_lives(tmp_path) -> None:
    """As data workers do, which are forked and outlive `kill -9` for a while."""
    lock = tmp_path / ".lock"
    read, write = os.pipe()
    holder = os.fork()
    if holder == 0:
        with exclusive(lock, "a run", "wait"):
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            os.write(write, str(child).encode())
            time.sleep(60)
        os._exit(0)
    child = int(os.read(read, 20))
    try:
        with pytest.raises(InUse, match=f"process {holder} on"), exclusive(lock, "a run", "wait"):
            pass
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        os.kill(child, 0)  # it lives
        with exclusive(lock, "a run", "wait"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(read)
        os.close(write)


def test_a_child_that_ends_leaves_its_parent_the_lock(tmp_path) -> None:
    lock = tmp_path / ".lock"
    with exclusive(lock, "a run", "wait"):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(InUse), exclusive(lock, "a run", "wait"):
            pass
