"""The command `bitgen`: the scripts' entries under one name, which explains itself without loading torch."""

from __future__ import annotations

import runpy
import subprocess
import sys

import pytest

from bitgen import __version__, commands
from bitgen.machine.stopping import resume_command
from support.runs import REPOSITORY, execute

SCRIPTS = {
    "train": "train_stage1_vision_language",
    "evaluate": "evaluate",
    "train-vlm": "train_vlm",
    "train-reasoning": "train_stage2_reasoning",
    "caption": "caption",
    "ask": "ask",
    "memory": "memory",
    "demo": "demo",
    "export": "export",
    "submit": "submit",
    "lora-report": "lora_report",
    "compare-vlms": "compare_vlms",
    "adapters": "adapters",
}
HEAVY = ("torch", "transformers", "numpy", "yaml")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return execute([sys.executable, *arguments])


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    code = f"import sys, bitgen.__main__ as m; m.main(['--help']); print([n for n in {HEAVY} if n in sys.modules])"
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    for name in SCRIPTS:
        assert f"\n  {name} " in done.stdout
    assert "examples:" in done.stdout and max(map(len, done.stdout.splitlines())) <= 120


def test_the_version_is_the_packages(capsys) -> None:
    assert commands.main(["--version"]) == 0
    assert capsys.readouterr().out == f"bitgen {__version__}\n"


@pytest.mark.parametrize(("name", "hint"), [("evalute", "Did you mean evaluate?"), ("x", "Choose from train, ")])
def test_an_unknown_command_is_named(capsys, name: str, hint: str) -> None:
    assert commands.main([name]) == 2
    said = capsys.readouterr().err
    assert repr(name) in said and hint in said


def test_no_command_is_a_question_for_help(capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bitgen"])
    assert commands.main() == 0
    assert "usage: bitgen COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_command_explains_itself_as_its_script_does(capsys, monkeypatch, name: str) -> None:
    assert set(SCRIPTS) == set(commands.COMMANDS)
    script, said = REPOSITORY / "src" / f"{SCRIPTS[name]}.py", []
    for call in (lambda: commands.main([name, "--help"]), lambda: runpy.run_path(str(script), run_name="__main__")):
        monkeypatch.setattr(sys, "argv", [str(script), "--help"])
        with pytest.raises(SystemExit) as stopped:
            call()
        assert stopped.value.code == 0
        said.append("".join(capsys.readouterr().out.split()))
    command, of_script = said
    assert command == of_script.replace(f"usage:{script.name}", f"usage:bitgen{name}", 1)


def test_arguments_reach_the_command(capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bitgen"])
    with pytest.raises(SystemExit) as stopped:
        commands.main(["caption", "x.png", "--model", "nowhere"])
    assert stopped.value.code == 2
    assert "--model nowhere: there is no such folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        commands.main(["train", "--batch_size", "0"])
    assert stopped.value.code == 2 and "batch_size is 0" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "train-reasoning", "train-vlm"])
def test_a_run_of_the_command_is_resumed_by_the_command(monkeypatch, command) -> None:
    given = [f"bitgen {command}", "--config", "a b.yaml", "--resume", "auto"]
    assert resume_command(given) == f"bitgen {command} --config 'a b.yaml' --resume auto"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    expected = f"torchrun --nproc_per_node=2 -m bitgen {command} --config 'a b.yaml' --resume auto"
    assert resume_command(given, world_size=2) == expected
