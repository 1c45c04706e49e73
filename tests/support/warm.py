"""Processes that begin with everything imported: one process imports, and each command is a fork of it.

A new interpreter takes longer to import torch and transformers than most tests take. What a command does is the same,
but hashes of strings and addresses, and so the order of sets, are those of the process that was forked; what modules
read when they are imported was read there; and the interpreter does not take itself apart at the end. So tests of
imports and of signals start new interpreters, and one of each kind of training starts torchrun. Strings have other
hashes than in the process that asks, so a fork does for tests of what must not depend on the order of sets.
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
HASH_SEED = "4711"
FAILED_BESIDE = 10.0  # seconds that the others get when one process of several has failed

_servers: dict[tuple[str, ...], _Server] = {}


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
        modules: imported before.
        without: variables that the environment does not have.
    """
    from support.runs import REPOSITORY, environment

    key = (*modules, *without)
    variables = {name: value for name, value in environment().items() if name not in without}
    if key not in _servers:
        _servers[key] = _Server(modules, variables)
    words = [str(part) for part in arguments]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        files = [out.fileno(), errors.fileno()]
        try:
            status = _servers[key].ask(words, processes, timeout, str(cwd or REPOSITORY), variables, files)
        except BaseException:  # the answer that is owed would be taken for the next one
            _servers.pop(key).close()
            raise
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
        # Sets have another order than in the process that asks: what must not depend on it is seen not to.
        variables = variables | {"PYTHONHASHSEED": HASH_SEED}
        self.process = subprocess.Popen(command, env=variables, pass_fds=[theirs.fileno()])
        theirs.close()
        self.socket = ours
        atexit.register(self.close)

    def close(self) -> None:
        self.socket.close()  # at which it ends, with whatever it has forked
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def ask(
        self, words: list[str], processes: int, timeout: float, cwd: str, variables: dict[str, str], files: list[int]
    ) -> int | None:
        """The status at the end, 0 if all processes ended well; None: they took too long, and were killed."""
        request = {"words": words, "processes": processes, "timeout": timeout, "cwd": cwd, "variables": variables}
        content = json.dumps(request).encode()
        try:
            socket.send_fds(self.socket, [len(content).to_bytes(8, "big")], files)
            self.socket.sendall(content)
            with self.socket.makefile() as answers:
                answer = answers.readline()
        except OSError:
            answer = ""
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
                part = asked.recv(1 << 20)
                if not part:
                    return
                content += part
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
    deadline, status, late = time.monotonic() + request["timeout"], 0, False
    while running:
        watched = [asked, *running.values()]
        ready, _, _ = select.select(watched, [], [], max(0.0, deadline - time.monotonic()))
        over = not ready or asked in ready  # it takes too long, or whoever asked is gone
        for child, watch in list(running.items()):
            if over:
                os.kill(child, signal.SIGKILL)
                late = True
            elif watch not in ready:
                continue
            ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            os.close(running.pop(child))
            if ended and not status and not late:  # the others wait for the one that failed
                status, deadline = ended, min(deadline, time.monotonic() + FAILED_BESIDE)
    return None if late and not status else status


def _become(words: list[str], cwd: str, variables: dict[str, str], files: list[int]) -> None:
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


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose modules have names that others have too
    serve(int(sys.argv[1]), sys.argv[2:])
