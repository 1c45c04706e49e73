"""Processes that do not come, die, or are wrongly numbered: one sentence that says what to do."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from bitgen.config import ConfigError
from bitgen.machine import devices
from bitgen.machine.devices import start_processes
from bitgen.machine.ranks import Processes, lost_peer
from support.runs import command, wait_for_step
from support.warm import free_port, place_of, start_warm

CPU = torch.device("cpu")


SHORT = """
import sys
from bitgen.machine import watch
watch.STALLED_SECONDS = 6.0
from bitgen.commands.train import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"WORLD_SIZE": "2"}, "not which of them this is. Set RANK"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2, but there are 2 processes"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK is -1"),
        ({"WORLD_SIZE": "2", "RANK": "first"}, "RANK is 'first'; write a whole number"),
        ({"RANK": "1"}, "RANK is 1, but there are 1 processes"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many'"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "x"}, "LOCAL_RANK is 'x'"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "-2"}, "LOCAL_RANK is -2"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "could not meet the others at no MASTER_ADDR"),
    ],
)
def test_what_the_launcher_says_is_checked(monkeypatch, variables: dict[str, str], says: str) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=says) as caught:
        start_processes("cpu", use_ddp=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_whose_peers_do_not_come_says_so_soon(monkeypatch, rank: int) -> None:
    port = str(free_port())
    monkeypatch.setattr(devices, "JOINING_TIMEOUT", timedelta(seconds=1))
    for name, value in {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ConfigError, match=f"process {rank} of 2 could not meet the others at 127.0.0.1:{port}"
    ) as error:
        start_processes("cpu", use_ddp=True)
    assert "\n" not in str(error.value) and "Look whether all of them were started" in str(error.value)
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("error", "world_size", "is_lost"),
    [
        (RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:5"), 2, True),
        (RuntimeError("[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1ms for recv"), 2, True),
        (dist.DistBackendError("NCCL communicator was aborted on rank 1."), 2, True),
        (dist.DistNetworkError("Connection reset by peer"), 2, True),
        (RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer"), 1, False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 2, False),
        (ValueError("gloo"), 2, False),
    ],
)
def test_which_errors_mean_a_lost_peer(error: Exception, world_size: int, is_lost: bool) -> None:
    assert (lost_peer(error, Processes(0, world_size, CPU)) is not None) == is_lost


def test_a_peer_that_dies_ends_the_others_with_one_sentence(tiny_config) -> None:
    config = tiny_config(max_steps=500)
    _, *arguments = command(config, use_ddp=True, num_gpus=2)
    port = free_port()
    processes = [start_warm(arguments, **place_of(rank, 2, port)) for rank in (0, 1)]
    try:
        wait_for_step(Path(config.output.log_dir), 2, processes[0])
        processes[1].kill()
        said, _ = processes[0].communicate(timeout=120)
        assert processes[0].returncode == 1, said
        assert said.count("lost another process of this run") == 1 and "--resume auto" in said
        assert "Traceback" not in said
        assert "Traceback" in (Path(config.output.log_dir) / "training.log").read_text()
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_frozen_peer_is_mentioned_by_the_main_process_and_the_run_goes_on(tiny_config) -> None:
    config = tiny_config(max_steps=4)
    _, script, *arguments = command(config, use_ddp=True, num_gpus=2)
    assert script.endswith(".py")
    port, log = free_port(), Path(config.output.log_dir) / "training.log"
    processes = [start_warm(["-c", SHORT, *arguments], **place_of(rank, 2, port)) for rank in (0, 1)]
    try:
        wait_for_step(Path(config.output.log_dir), 1, processes[0])
        assert "is not over after" not in log.read_text()
        os.kill(processes[1].pid, signal.SIGSTOP)
        deadline = time.monotonic() + 90
        while "is not over after 0.1 minutes" not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(processes[1].pid, signal.SIGCONT)
        text, _ = processes[0].communicate(timeout=240)
        assert processes[0].returncode == 0, text
        assert "kill -CONT" in text
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("queue_weight", [0.0, 0.1])
def test_a_batch_of_one_pair_is_contrasted_with_nothing(tiny_config, build, caplog, queue_weight: float) -> None:
    settings = {"batch_size": 1, "queue_weight": queue_weight, "scenes_train": 4, "max_steps": 1}
    if not queue_weight:
        with pytest.raises(ConfigError, match="compares a pair with nothing and learns nothing. Write batch_size 2"):
            tiny_config(**settings)
        tiny_config(**settings, contrastive_weight=0.0)
        tiny_config(**{**settings, "batch_size": 2})
    else:
        build(**settings)
        assert "Write batch_size 2 or more" in caplog.text
