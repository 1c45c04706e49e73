"""The first signal is noted, the second ends the process; the resume command is the one that started the run."""

import os
import signal

import pytest

from bitgen.machine.stopping import StopSignals, resume_command
from support.runs import run_code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_first_signal_is_only_noted(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as stop:
        os.kill(os.getpid(), number)
        assert stop.received == number
    assert signal.getsignal(number) is before


def test_the_second_signal_ends_the_process_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os, signal\n"
        "from bitgen.machine.stopping import StopSignals\n"
        "with StopSignals():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('first', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('second', flush=True)\n"
    )
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    done = run_code(code)
    assert done.stdout.split() == ["first"]
    assert done.returncode == -signal.SIGTERM


def test_a_shell_that_says_hup_again_ends_nothing_and_nohup_stays() -> None:
    with StopSignals() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.received == signal.SIGHUP
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_torchruns_echo_of_ctrl_c_is_not_a_second_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGINT


def test_the_resume_command_keeps_every_other_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert (
        resume_command(["src/train.py", "--config", "a b.yaml", "--resume", "x", "--seed", "1"])
        == "python src/train.py --config 'a b.yaml' --seed 1 --resume auto"
    )
    assert resume_command(["t.py", "--resume=auto"], world_size=2) == "torchrun --nproc_per_node=2 t.py --resume auto"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert resume_command(["t.py"], world_size=4) == "torchrun --nnodes=2 ... --nproc_per_node=2 t.py --resume auto"
