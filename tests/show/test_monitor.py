"""Monitor: what lands in training.log, metrics.jsonl and TensorBoard; resume; terminals; other ranks; full disks."""

import json
import logging
import math
import sys

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bitgen.show import monitor as monitor_module
from bitgen.show.metrics_file import read_metrics
from bitgen.show.monitor import Monitor, format_duration

logger = logging.getLogger("bitgen.training.trainer")


@pytest.fixture(autouse=True)
def every_line(monkeypatch):
    monkeypatch.setattr(monitor_module, "SECONDS_BETWEEN_LINES", 0.0)


@pytest.fixture
def terminal(monkeypatch):
    """stderr taken for a terminal, while its text is still captured."""
    monkeypatch.setattr(monitor_module, "_on_terminal", lambda: True)


def losses(value: float) -> dict[str, float]:
    return {"train/loss": value, "train/contrastive_loss": value / 2, "train/itm_loss": 0.6, "train/acc_i2t": 0.25}


def events(folder) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def train(monitor: Monitor, steps: range, phase: int = 1) -> None:
    monitor.start_epoch(0, 10, done=steps.start - 1, num_epochs=1)
    for step in steps:
        monitor.step(step, phase, losses(10.0 - step))


# ---- metrics.jsonl and TensorBoard ----


def test_scalars_reach_both_sinks_with_their_full_names(tmp_path):
    monitor = Monitor(tmp_path)
    monitor.step(1, 1, {"train/contrastive_loss": torch.tensor(2.5), "train/lr/new": 1e-4})
    monitor.scalars(1, 1, {"val/t2i_R@1": 12.5})
    monitor.close()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records == [
        {"step": 1, "phase": 1, "train/contrastive_loss": 2.5, "train/lr/new": 1e-4},
        {"step": 1, "phase": 1, "val/t2i_R@1": 12.5},
    ]
    tags = events(tmp_path).Tags()["scalars"]
    assert {"train/contrastive_loss", "train/lr/new", "val/t2i_R@1", "phase"} <= set(tags)


def test_each_line_is_on_disk_at_once(tmp_path):
    monitor = Monitor(tmp_path)
    monitor.step(1, 1, losses(1.0))
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    monitor.close()


def test_steps_without_scalars_write_nothing(tmp_path):
    monitor = Monitor(tmp_path)
    monitor.step(1, 1)
    monitor.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_nan_and_infinity_become_null_so_that_the_file_stays_json(tmp_path):
    monitor = Monitor(tmp_path)
    monitor.step(1, 1, {"train/loss": math.nan, "train/grad_norm": math.inf})
    monitor.close()

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=refuse)["train/grad_norm"] is None


def test_pictures_reach_tensorboard(tmp_path):
    monitor = Monitor(tmp_path)
    monitor.pictures(7, {"memory/slot_usage": torch.zeros(3, 5, 6, dtype=torch.uint8)})
    monitor.close()
    (picture,) = events(tmp_path).Images("memory/slot_usage")
    assert (picture.step, picture.height, picture.width) == (7, 5, 6)


# ---- resume, and starting anew ----


def test_resume_drops_what_came_after_the_checkpoint(tmp_path):
    first = Monitor(tmp_path)
    train(first, range(1, 7))
    first.close()
    second = Monitor(tmp_path, resume_step=4)
    train(second, range(5, 9), phase=2)
    second.close()

    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["phase"]) for r in records] == [
        (1, 1),
        (2, 1),
        (3, 1),
        (4, 1),
        (5, 2),
        (6, 2),
        (7, 2),
        (8, 2),
    ]
    assert [event.step for event in events(tmp_path).Scalars("train/loss")] == list(range(1, 9))
    log = (tmp_path / "training.log").read_text()
    assert "step 6 " in log and "step 8 " in log, "training.log is appended to"


def test_a_resume_that_is_refused_drops_nothing(tmp_path):
    first = Monitor(tmp_path)
    train(first, range(1, 7))
    first.close()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    Monitor(tmp_path, resume_step=2).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert [event.step for event in events(tmp_path).Scalars("train/loss")] == list(range(1, 7))


def test_resume_in_an_empty_folder_works(tmp_path):
    monitor = Monitor(tmp_path / "new" / "logs", resume_step=4)
    monitor.step(5, 1, losses(1.0))
    monitor.close()
    assert [r["step"] for r in read_metrics(tmp_path / "new" / "logs" / "metrics.jsonl")] == [5]


def test_new_run_sets_the_logs_of_an_earlier_one_aside(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for _ in range(3):
        monitor = Monitor(tmp_path)
        monitor.step(1, 1, losses(1.0))
        monitor.close()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    for earlier in ("earlier-1", "earlier-2"):
        assert len(read_metrics(tmp_path / earlier / "metrics.jsonl")) == 1
        assert [e.step for e in events(tmp_path / earlier).Scalars("train/loss")] == [1]
    assert not (tmp_path / "earlier-3").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1


# ---- log lines and the progress bar ----


def test_log_lines_reach_console_and_file(tmp_path, capsys):
    monitor = Monitor(tmp_path)
    logger.info("LoRA adapters FROZEN | Trainable params: 7")
    monitor.close()
    assert "LoRA adapters FROZEN | Trainable params: 7" in (tmp_path / "training.log").read_text()
    assert capsys.readouterr().err.count("Trainable params: 7") == 1


def test_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
    monitor = Monitor(tmp_path, total_steps=10)
    train(monitor, range(1, 4))
    monitor.close()
    shown = capsys.readouterr().err
    line = next(line for line in shown.splitlines() if "step 3/10" in line)
    for words in ("epoch 1/1", "(phase 1)", "loss 7.000", "itc 3.500", "itm 0.600", "i2t 25%", "ETA"):
        assert words in line
    assert "\r" not in shown, "a progress bar was drawn into a file"


def test_plain_lines_come_every_so_often(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(monitor_module, "SECONDS_BETWEEN_LINES", 1e6)
    monitor = Monitor(tmp_path)
    train(monitor, range(1, 9))
    monitor.close()
    assert capsys.readouterr().err.count("loss") == 1
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 8


def test_terminal_shows_a_bar_and_the_file_the_lines(tmp_path, capsys, terminal):
    monitor = Monitor(tmp_path, total_steps=10)
    train(monitor, range(3, 6))
    logger.info("saved a checkpoint")
    monitor.close()
    shown = capsys.readouterr().err
    assert "| 5/10 ETA" in shown and "| 1/10 ETA" not in shown, (
        "the bar starts at the steps that a resumed epoch has done"
    )
    assert "itc" in shown and "step 4/10" not in shown
    assert "saved a checkpoint\n" in shown
    assert "step 4/10" in (tmp_path / "training.log").read_text()


def test_progress_can_be_switched_off_on_a_terminal(tmp_path, capsys, terminal):
    monitor = Monitor(tmp_path, progress=False)
    train(monitor, range(1, 4))
    monitor.close()
    shown = capsys.readouterr().err
    assert "\r" not in shown and "step 3 " in shown


# ---- other ranks ----


def test_other_ranks_write_nothing_and_show_only_warnings(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monitor = Monitor(tmp_path / "logs", is_main=False, resume_step=2, total_steps=10)
    monitor.banner([("device", "cpu")], "parameters")
    train(monitor, range(1, 3))
    monitor.scalars(2, 1, {"val/t2i_R@1": 1.0})
    monitor.pictures(2, {"x": torch.zeros(3, 2, 2, dtype=torch.uint8)})
    monitor.flush()
    monitor.summary([("best", "nowhere")], ["command"])
    logger.info("said on every rank")
    logger.warning("skipped a step")
    monitor.close()
    shown = capsys.readouterr().err
    assert not (tmp_path / "logs").exists()
    assert shown.strip().endswith("[rank 3] WARNING: skipped a step")
    assert len(shown.strip().splitlines()) == 1


# ---- banner and summary ----


def test_banner_tells_what_runs_and_where_to_look(tmp_path, capsys):
    monitor = Monitor(tmp_path / "logs" / "stage1")
    monitor.banner([("device", "cpu"), ("world size", 1)], "Parameters\n  LoRA adapters  589,824")
    monitor.close()
    for text in (capsys.readouterr().err, (tmp_path / "logs" / "stage1" / "training.log").read_text()):
        assert "device" in text and "589,824" in text and "training.log" in text
        assert f"tensorboard --logdir {tmp_path / 'logs'}\n" in text


def run_with_both_phases(folder) -> Monitor:
    first = Monitor(folder)
    train(first, range(1, 7))
    first.scalars(6, 1, {"val/t2i_R@1": 20.0, "perf/peak_memory_gb": 3.0})
    first.close()
    second = Monitor(folder, resume_step=6)
    train(second, range(7, 9), phase=2)
    second.scalars(8, 2, {"val/t2i_R@1": 31.5, "perf/peak_memory_gb": 2.0})
    return second


def test_summary_covers_all_resumes_and_both_phases(tmp_path, capsys):
    monitor = run_with_both_phases(tmp_path)
    capsys.readouterr()
    monitor.summary(
        [("best checkpoint", "checkpoints/stage1/best")], [("measure it", "python src/evaluate.py --data d")]
    )
    monitor.close()
    rows = {line.split("  ")[1].strip(): line.split() for line in capsys.readouterr().err.splitlines() if "  " in line}
    assert rows["loss"][-2:] == ["9", "4"], "first loss, and the mean of 6, 5, 4, 3, 2"
    assert rows["t2i_R@1"][-2:] == ["20", "31.5"]
    assert rows["peak memory"][-2:] == ["3.00", "GB"]
    log = (tmp_path / "training.log").read_text()
    assert "checkpoints/stage1/best" in log
    assert "  # measure it\n  python src/evaluate.py --data d\n" in log
    assert "after phase 1" in log and "after phase 2" in log


@pytest.mark.parametrize("has_rich", [True, False])
def test_summary_on_a_terminal_with_and_without_rich(tmp_path, capsys, monkeypatch, terminal, has_rich):
    if has_rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setitem(sys.modules, "rich", None)
    monitor = run_with_both_phases(tmp_path)
    capsys.readouterr()
    monitor.summary([("best checkpoint", "runs/[bold]/best")])
    monitor.close()
    shown = capsys.readouterr().err
    assert shown.count("runs/[bold]/best") == 1, "once, and with nothing taken for markup"
    assert shown.count("31.5") == 1
    assert "runs/[bold]/best" in (tmp_path / "training.log").read_text()


def test_summary_of_a_run_that_did_nothing(tmp_path):
    monitor = Monitor(tmp_path)
    monitor.summary([])
    monitor.close()
    assert "tensorboard --logdir" in (tmp_path / "training.log").read_text()


# ---- what goes wrong ----


def test_unwritable_log_folder_is_named_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    handlers = list(logging.getLogger().handlers)
    with pytest.raises(ValueError, match=r"--log_dir .*file.logs: cannot write .*Choose a folder"):
        Monitor(tmp_path / "file" / "logs")
    assert list(logging.getLogger().handlers) == handlers


def test_tensorboard_that_cannot_write_is_given_up_with_a_warning(tmp_path, capsys, monkeypatch):
    monitor = Monitor(tmp_path)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(monitor._tensorboard, "add_scalar", full)
    train(monitor, range(1, 4))
    monitor.close()
    assert capsys.readouterr().err.count("TensorBoard gets no more events") == 1
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3


# ---- small parts ----


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (42.9, "0:42"), (725, "12:05"), (12011, "3:20:11"), (2 * 86400 + 12011, "2d 03:20:11"), (-3, "0:00")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_time_left_goes_by_the_rate_so_far(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(monitor_module.time, "monotonic", lambda: now[0])
    monitor = Monitor(tmp_path, total_steps=100)
    monitor.step(41, 1)
    now[0] += 20.0
    monitor.step(51, 1)
    assert monitor._time_left(51) == "1:38"
    monitor.close()


@pytest.mark.parametrize(("log_dir", "root"), [("logs/stage1", "logs"), ("logs", "logs"), ("/logs", "/logs")])
def test_tensorboard_is_pointed_at_the_folder_of_all_runs(log_dir, root):
    monitor = Monitor(log_dir, is_main=False)
    monitor.close()
    assert str(monitor.tensorboard_root) == root


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        ({"val/t2i_R@1": 12.5, "val/other": 3.0}, "held out: t2i_R@1 12.5"),
        ({"val/says_taught": 97.25, "val/says_two": 80.0, "val/recalled_two": 7.0}, "says_taught 97.25, says_two 80"),
        ({"val/new_measure": 7.0}, "held out: new_measure 7"),
    ],
    ids=str,
)
def test_a_validation_says_its_main_figures_or_all_that_it_has(tmp_path, caplog, measured, said) -> None:
    monitor = Monitor(tmp_path)
    with caplog.at_level("INFO"):
        monitor.held_out(4, 1, measured, {}, {})
    monitor.close()
    (line,) = (record.getMessage() for record in caplog.records if "held out" in record.getMessage())
    assert line.startswith("step 4 held out: ") and line.endswith(said)
