"""Processes that begin with everything imported: one process imports, and each command is a fork of it.

A new interpreter takes longer to import torch and transformers than most tests take. What a command does is the same,
but hashes of strings and addresses, and so the order of sets, are those of the process that was forked; what modules
read when they are imported was read there; and the interpreter does not take itself apart at the end. So tests of
imports and of signals start new interpreters, and one of each kind of training starts torchrun. Strings have other
hashes than in the process that asks, so a fork does for tests of what must not depend on the order of sets.

The process that forks serves all workers of pytest-xdist, and ends with pytest itself.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import NoReturn, TextIO

OURS = ("bitgen.api", "bitgen.commands.train", "bitgen.commands.train_vlm", "peft", "torch.distributed.fsdp")
# transformers where neither this project nor peft is installed: what stands behind a minus cannot be imported.
ALONE = ("-bitgen", "-peft", "transformers.models.llava.modeling_llava", "transformers.models.auto.processing_auto")
HASH_SEED = "4711"
FAILED_BESIDE = 10.0  # seconds that the others get when one process of several has failed
_servers: list[subprocess.Popen] = []
_ASKED = "asked"  # the socket's name in a server's folder


def run_warm(
    arguments: list[object],
    processes: int = 1,
    timeout: float = 240,
    cwd: Path | None = None,
    modules: tuple[str, ...] = OURS,
    without: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENTS`` (a script or ``-c CODE``, and what they are given) to its end.

    Args:
        processes: so many of them, which are told of one another as ``torchrun`` tells them.
        modules: imported before; a minus before a name means that importing it fails.
        without: variables that the environment does not have.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        running: list[Started] = []
        port = free_port()
        try:
            for rank in range(processes):
                place = place_of(rank, processes, port) if processes > 1 else {}
                running.append(Started(arguments, place, cwd, modules, without, (out, errors)))
            status = _first_failure(running, time.monotonic() + timeout)
        finally:
            for process in running:
                process.close()
        for file in (out, errors):
            file.seek(0)
        words = running[0].args
        if status is None:
            raise subprocess.TimeoutExpired(words, timeout, out.read(), errors.read())
        return subprocess.CompletedProcess(words, status, out.read(), errors.read())


def run_alone(arguments: list[object], cwd: Path, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENTS`` with what ``ALONE`` says, in the folder ``cwd``."""
    return run_warm(arguments, timeout=timeout, cwd=cwd, modules=ALONE, without=("PYTHONPATH",))


def start_warm(arguments: list[object], **more: str) -> Started:
    """Begin ``python ARGUMENTS`` beside the test, with ``more`` in its environment, and both its outputs in one."""
    out = tempfile.TemporaryFile("w+")  # noqa: SIM115  # communicate() closes it
    return Started(arguments, more, None, OURS, (), (out, out))


def place_of(rank: int, processes: int, port: int) -> dict[str, str]:
    """The variables by which ``torchrun`` tells a process of the others."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    return {name: str(value) for name, value in {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items()}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Started:
    """A process that was forked, with what tests use of ``subprocess.Popen``. It is killed when nobody asks for it any
    more: at ``close``, and when the process that began it ends."""

    def __init__(
        self,
        arguments: list[object],
        more: dict[str, str],
        cwd: Path | None,
        modules: tuple[str, ...],
        without: tuple[str, ...],
        files: tuple[TextIO, TextIO],
    ) -> None:
        from support.runs import REPOSITORY, environment

        self.args = [str(part) for part in arguments]
        self.returncode: int | None = None
        self._files = files
        self._printed: str | None = None
        variables = {name: value for name, value in environment().items() if name not in without}
        request = {"words": self.args, "cwd": str(cwd or REPOSITORY), "variables": variables | more}
        content = json.dumps(request).encode()
        self.connection = _connect(modules, without, variables)
        numbers = [file.fileno() for file in files]
        socket.send_fds(self.connection, [len(content).to_bytes(8, "big")], numbers)
        self.connection.sendall(content)
        self._heard = b""
        pid = self._next_number(240)  # while it imports
        if pid is None:
            raise RuntimeError("the process that forks takes too long: see what it said above")
        self.pid = pid

    def _next_number(self, timeout: float | None) -> int | None:
        """What the server says next: the number of the process, then its status. None: it has not said it in time."""
        while b"\n" not in self._heard:
            if not select.select([self.connection], [], [], timeout)[0]:
                return None
            part = self.connection.recv(100)
            if not part:
                raise RuntimeError("the process that forks has ended: see what it said above")
            self._heard += part
        number, _, self._heard = self._heard.partition(b"\n")
        return int(number)

    def poll(self) -> int | None:
        return self._ended(0)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self.returncode = self._next_number(timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Wait until it has ended; what it printed."""
        if self._ended(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        if self._printed is None:
            self.close()
            with self._files[0] as file:
                file.seek(0)
                self._printed = file.read()
        return self._printed, None

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            if self.poll() is None:
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        self.connection.close()


def _first_failure(running: list[Started], deadline: float) -> int | None:
    """The status of the process that failed first, 0 if none did; None: they took too long."""
    status = 0
    while waiting := [process for process in running if process.returncode is None]:
        remains = deadline - time.monotonic()
        if remains <= 0:
            return status or None
        select.select([process.connection for process in waiting], [], [], remains)
        for process in waiting:
            if process.poll() and not status:  # the others wait for the one that failed
                status, deadline = process.poll(), min(deadline, time.monotonic() + FAILED_BESIDE)
    return status


def _connect(modules: tuple[str, ...], without: tuple[str, ...], variables: dict[str, str]) -> socket.socket:
    """A connection to the server that has imported these modules; the first to ask starts it, with these variables."""
    owner = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    key = zlib.crc32(" ".join([*modules, "-", *without]).encode())
    folder = Path(tempfile.gettempdir()) / f"bitgen-warm-{owner}-{key:08x}"
    folder.mkdir(mode=0o700, exist_ok=True)
    connection = socket.socket(socket.AF_UNIX)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if connection.connect_ex(str(folder / _ASKED)) == 0:
            return connection
        command = [sys.executable, __file__, str(folder), str(owner), *modules]
        # Sets have another order than in the process that asks: what must not depend on it is seen not to.
        # The code of exports is copied to a home of its own.
        more = {"PYTHONHASHSEED": HASH_SEED, "HF_HOME": str(folder / "home")}
        server = subprocess.Popen(command, env=variables | more)
        _servers.append(server)
        while connection.connect_ex(str(folder / _ASKED)):
            if server.poll() is not None:
                raise RuntimeError("the process that forks has ended: see what it said above")
            time.sleep(0.01)
    return connection


# ---- inside the server ----


def serve(folder: Path, owner: int, modules: list[str]) -> None:
    """Import, then fork for everyone who asks, until the owner has ended."""
    path, running = folder / _ASKED, {}
    path.unlink(missing_ok=True)
    owned = os.pidfd_open(owner)
    with socket.socket(socket.AF_UNIX) as asked:
        asked.bind(str(path))
        asked.listen()  # who asks meanwhile waits
        for module in modules:
            if module.startswith("-"):
                sys.modules[module[1:]] = None  # type: ignore[assignment]
            else:
                __import__(module)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        while True:
            connections = [connection for _, connection in running.values()]
            ready, _, _ = select.select([asked, owned, *running, *connections], [], [])
            for watch, (child, connection) in list(running.items()):
                if watch in ready:
                    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                    with contextlib.suppress(OSError), connection:
                        connection.sendall(b"%d\n" % status)
                    os.close(watch)
                    del running[watch]
                elif connection in ready or owned in ready:  # nobody waits for it any more
                    os.kill(child, signal.SIGKILL)
            if owned in ready:
                break
            if asked in ready:
                _begin(asked, running)
    shutil.rmtree(folder, ignore_errors=True)


def _begin(asked: socket.socket, running: dict[int, tuple[int, socket.socket]]) -> None:
    """Fork what the next one asks for, and say which process it is."""
    connection, _ = asked.accept()
    size, files, _, _ = socket.recv_fds(connection, 8, 2)
    content = b""
    while size and len(content) < int.from_bytes(size, "big"):
        part = connection.recv(1 << 20)
        if not part:
            break
        content += part
    else:
        child = os.fork()
        if child == 0:
            asked.close()
            for _, other in running.values():
                other.close()
            connection.close()
            _become(**json.loads(content), files=files)
        running[os.pidfd_open(child)] = child, connection
        with contextlib.suppress(OSError):
            connection.sendall(b"%d\n" % child)
    for file in files:
        os.close(file)


def _become(words: list[str], cwd: str, variables: dict[str, str], files: list[int]) -> NoReturn:
    """What the interpreter would do with these words; it ends the process."""
    import runpy
    import threading
    import traceback

    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # as a new process would

    os.dup2(files[0], 1)
    os.dup2(files[1], 2)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    status = 1
    try:
        if words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            sys.path.insert(0, "")
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).parent))
            runpy.run_path(words[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the end of an interpreter does
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status & 0xFF)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose modules have names that others have too
    serve(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
