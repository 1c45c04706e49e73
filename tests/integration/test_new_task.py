"""The house takes a model that it has never seen, and ``training/`` stays as it is: see ``support/toy_task.py``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from bitgen.checkpoint.format import find_checkpoint
from bitgen.config import ConfigError
from bitgen.machine.devices import start_processes
from bitgen.run import build_trainer
from bitgen.training.trainer import Trainer
from support import toy_task
from support.runs import metrics, same_checkpoint
from support.toy_task import Toy, ToyConfig
from support.warm import run_warm

WORKER = Path(__file__).with_name("toy_worker.py")


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., ToyConfig]:
    """``config(run, **settings)``: nine steps, each run in a folder of its own."""

    def make(run: str, **settings: object) -> ToyConfig:
        folders = {"output_dir": str(tmp_path / run / "checkpoints"), "log_dir": str(tmp_path / run / "logs")}
        common = dict(max_steps=9, batch_size=8, log_steps=1, save_steps=100, precision="fp32", progress=False)
        return ToyConfig().replace(**common, **folders, **settings)

    return make


def build(config: ToyConfig) -> Trainer:
    return build_trainer(Toy(), config, start_processes("cpu", False))


def kinds_that_moved(trainer: Trainer, before: dict[str, torch.Tensor]) -> set[str]:
    roles, named = trainer.objective.roles(), trainer.objective.named_parameters()
    return {roles[name].kind for name, p in named if not torch.equal(p.detach(), before[name])}


def test_a_new_objective_and_source_take_less_than_sixty_lines() -> None:
    text = Path(toy_task.__file__).read_text(encoding="utf-8")
    lines = text.split("# ---- the toy starts here ----")[1].split("# ---- and ends here ----")[0].splitlines()
    assert 40 < sum(bool(line.strip()) and '"""' not in line for line in lines) < 60


def test_two_groups_of_which_one_starts_late(config, caplog) -> None:
    with caplog.at_level("INFO"):
        trainer = build(config("run"))
        before = {name: p.detach().clone() for name, p in trainer.objective.named_parameters()}
        moved = {}
        step = trainer._step

        def watch(*arguments: object) -> bool:
            stop = step(*arguments)
            moved[trainer.progress.step] = kinds_that_moved(trainer, before)
            return stop

        trainer._step = watch
        assert trainer.fit()
    trainer.monitor.close()
    assert moved == {s: {"norm"} if s < 4 else {"norm", "lora"} for s in range(1, 10)}
    assert "Norms | Trainable params: 160" in caplog.text and "Norms and adapters" in caplog.text
    records = metrics(trainer.monitor.log_dir)
    assert ["train/lr/adapters" in record for record in records] == [False] * 3 + [True] * 6
    assert records[-1]["train/loss"] < records[0]["train/loss"]
    assert trainer.objective.seen == 9 * 2 * 8


@pytest.mark.parametrize("stop_at", [2, 3, 6], ids=["in phase 1", "at the boundary", "in phase 2"])
def test_it_resumes_exactly(config, stop_at: int) -> None:
    for run, steps in (("straight", [9]), ("resumed", [stop_at, 9])):
        for part in steps:
            settings = {"resume": "auto"} if part == 9 and len(steps) > 1 else {}
            trainer = build(config(run, **settings))
            trainer.stage = trainer.stage if part == 9 else trainer.stage.cut(9)
            draw = trainer.source.draw

            def draw_and_stop(trainer=trainer, draw=draw, part=part) -> list:
                if part != 9 and trainer.progress.step == part - 1:
                    os.kill(os.getpid(), 15)
                return draw()

            trainer.source.draw = draw_and_stop
            trainer.fit()
            trainer.monitor.close()
    same_checkpoint(*(config(run).output.output_dir for run in ("straight", "resumed")))


# ---- several processes ----


def held(folder: str) -> dict[str, torch.Tensor]:
    """Weights and moments of a run's last checkpoint."""
    checkpoint = find_checkpoint("auto", folder)
    moments = checkpoint.state["optimizer"]
    found = {f"{name} {key}": tensor for name, state in moments.items() for key, tensor in state.items()}
    return {**load_file(checkpoint.path / "model.safetensors"), **found}


def test_sharded_trains_as_replicated_does_and_resumes_exactly(config, tmp_path: Path) -> None:
    """On two processes, which run all four after one start: starting takes most of the time."""
    two, sharded = {"use_ddp": True, "num_gpus": 2}, {"parallel": "sharded"}
    jobs = [
        [config("replicated", **two).flat(), None],
        [config("sharded", **two, **sharded).flat(), None],
        [config("stopped", **two, **sharded).flat(), 5],
        [config("stopped", **two, **sharded, resume="auto").flat(), None],
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    done = run_warm([WORKER, tmp_path / "jobs.json"], processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    replicated, whole, resumed = (held(config(run).output.output_dir) for run in ("replicated", "sharded", "stopped"))
    assert replicated.keys() == whole.keys() and len(replicated) > 20
    for name, tensor in replicated.items():
        torch.testing.assert_close(whole[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
        assert torch.equal(resumed[name], whole[name]), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "muon"}, "Muon needs whole matrices"),
        ({"ema_decay": 0.9}, "Averages of weights are kept whole"),
        ({"average_last": 0.2}, "Averages of weights are kept whole"),
    ],
)
def test_what_cannot_be_sharded_is_refused(config, monkeypatch, settings: dict, message: str) -> None:
    from bitgen import run
    from bitgen.machine.devices import Precision
    from bitgen.machine.ranks import Processes

    two = Processes(0, 2, torch.device("cpu"))
    with pytest.raises(ConfigError, match=message):
        training = config("run", parallel="sharded", **settings).training
        run._parallel(training, two, Precision("fp32", "cpu"), SimpleNamespace(blocks=None))
