"""Which device a process computes on, and what is refused, in every command that can be told."""

from __future__ import annotations

import importlib

import pytest
import torch

import bitgen
from bitgen.config import ConfigError
from bitgen.machine.devices import choose_device
from support.runs import written_run


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_the_words_that_there_are() -> None:
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    for word in ("gpu", "cuda:1", "CUDA"):
        with pytest.raises(ConfigError, match="Write auto, cpu or cuda"):
            choose_device(word)
    with pytest.raises(ConfigError, match="no CUDA device here"):
        choose_device("cuda")


COMMANDS = {
    "ask": ["--model", "RUN", "--memory", "none", "--question", "what?"],
    "caption": ["--model", "RUN", "x.png"],
    "demo": ["--model", "RUN"],
    "evaluate": ["--checkpoint", "RUN", "--data", "scenes"],
    "lora_report": ["--model", "RUN"],
    "memory": ["--model", "RUN", "--memory", "FOLDER/m", "teach", "x.png", "a dog"],
    "submit": ["--model", "RUN", "--eval_dir", "FOLDER/sets", "--output", "FOLDER/out"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_gpu_that_is_not_there_ends_each_command_in_one_line(name: str, tmp_path, capsys) -> None:
    command = importlib.import_module(f"bitgen.commands.{name}")
    words = [word.replace("RUN", str(written_run())).replace("FOLDER", str(tmp_path)) for word in COMMANDS[name]]
    (tmp_path / "sets").mkdir()
    try:
        status = command.main(["--device", "cuda", *words])
    except SystemExit as end:
        status = end.code
    error = capsys.readouterr().err
    assert status == 2 and "no CUDA device here" in error and error.count("error:") == 1, error


def test_the_api_says_it_too() -> None:
    for device, says in (("cuda", "no CUDA device"), ("gpu", "Write auto, cpu or cuda")):
        with pytest.raises(ValueError, match=says):
            bitgen.load(written_run(), device=device)
