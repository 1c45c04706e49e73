"""Processes that begin with everything imported: one process imports, and each command is a fork of it.

A new interpreter takes longer to import torch and transformers than most tests take. What a command does is the same
but for two things: hashes of strings, and so the order of sets, are those of the process that was forked, and the
modules are there already. Tests of imports, of ``torchrun`` itself and of the order of sets start new interpreters.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

OURS = ("bitgen.api", "bitgen.commands.train", "bitgen.commands.train_vlm", "peft", "torch.distributed.fsdp")
FAILED_BESIDE = 10.0  # seconds that the others get when one process of several has failed

_servers: dict[tuple[str, ...], _Server] = {}


def run_warm(
    arguments: list[object],
    processes: int = 1,
    timeout: float = 240,
    cwd: Path | None = None,
    modules: tuple[str, ...] = OURS,
    without: tuple[str, ...] = (),
    **more: str,
) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENTS`` (a script or ``-c CODE``, and what they are given) to its end.

    Args:
        processes: so many of them, which are told of one another as ``torchrun`` tells them.
        modules: imported before.
        without: variables that the environment does not have.
        more: and what it has beside that of this process.
    """
    from support.runs import REPOSITORY, environment

    key = (*modules, *without)
    if key not in _servers or _servers[key].process.poll() is not None:
        _servers[key] = _Server(modules, {name: value for name, value in environment().items() if name not in without})
    variables = {name: value for name, value in environment(**more).items() if name not in without}
    words = [str(part) for part in arguments]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        files = [out.fileno(), errors.fileno()]
        status = _servers[key].ask(words, processes, timeout, str(cwd or REPOSITORY), variables, files)
        for file in (out, errors):
            file.seek(0)
        if status is None:
            raise subprocess.TimeoutExpired(words, timeout, out.read(), errors.read())
        return subprocess.CompletedProcess(words, status, out.read(), errors.read())


class _Server:
    """The process that imports and forks."""

    def __init__(self, modules: tuple[str, ...], variables: dict[str, str]) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, __file__, str(theirs.fileno()), *modules]
        self.process = subprocess.Popen(command, env=variables, pass_fds=[theirs.fileno()])
        theirs.close()
        self.socket = ours
        atexit.register(self.close)

    def close(self) -> None:
        self.socket.close()  # at which it ends
        self.process.wait()

    def ask(
        self, words: list[str], processes: int, timeout: float, cwd: str, variables: dict[str, str], files: list[int]
    ) -> int | None:
        """The status at the end, 0 if all processes ended well; None: they took too long, and were killed."""
        request = {"words": words, "processes": processes, "timeout": timeout, "cwd": cwd, "variables": variables}
        content = json.dumps(request).encode()
        socket.send_fds(self.socket, [len(content).to_bytes(8, "big")], files)
        self.socket.sendall(content)
        answer = self.socket.makefile().readline()
        if not answer:
            raise RuntimeError("the process that forks has ended: see what it said above")
        return json.loads(answer)


# ---- inside the server ----


def serve(number: int, modules: list[str]) -> None:
    """Import, then fork what is asked for until nobody is there to ask."""
    for module in modules:
        __import__(module)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with socket.socket(fileno=number) as asked:
        while True:
            size, files, _, _ = socket.recv_fds(asked, 8, 2)
            if not size:
                return
            content = b""
            while len(content) < int.from_bytes(size, "big"):
                content += asked.recv(1 << 20)
            status = _forked(json.loads(content), files, asked)
            for file in files:
                os.close(file)
            asked.sendall(json.dumps(status).encode() + b"\n")


def _forked(request: dict[str, Any], files: list[int], asked: socket.socket) -> int | None:
    count, running = request["processes"], {}
    port = _free_port()
    for rank in range(count):
        child = os.fork()
        if child == 0:
            asked.close()
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            told = {name: str(value) for name, value in place.items()} if count > 1 else {}
            _become(request["words"], request["cwd"], request["variables"] | told, files)
        running[child] = os.pidfd_open(child)
    deadline, status = time.monotonic() + request["timeout"], 0
    late: int | None = None
    while running:
        ready, _, _ = select.select(list(running.values()), [], [], max(0.0, deadline - time.monotonic()))
        for child, watch in list(running.items()):
            if watch in ready or not ready:
                if not ready:
                    os.kill(child, signal.SIGKILL)
                    late = late if status else -1  # of those that wait for one which failed this is no news
                ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                os.close(running.pop(child))
                if ended and not status and late is None:
                    status, deadline = ended, min(deadline, time.monotonic() + FAILED_BESIDE)
    return None if late is not None and not status else status


def _become(words: list[str], cwd: str, variables: dict[str, str], files: list[int]) -> None:
    """What the interpreter would do with these words; it ends the process."""
    import runpy
    import traceback

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
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status & 0xFF)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose modules have names that others have too
    serve(int(sys.argv[1]), sys.argv[2:])
