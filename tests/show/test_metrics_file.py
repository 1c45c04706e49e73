"""metrics.jsonl: torn lines, crashes, full disks, and what is read off it at the end."""

import pytest

from bitgen.show.metrics_file import MetricsFile, drop_after, first_and_last, last_by_phase, read_metrics


def test_torn_line_of_a_killed_process_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "phase": 1}\n{"step": 2, "pha')
    assert drop_after(path, 5) == 1
    assert path.read_text() == '{"step": 1, "phase": 1}\n'
    assert not list(tmp_path.glob("*.tmp"))


def test_crash_while_dropping_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "phase": 1}\n{"step": 9, "phase": 1}\n')
    before = path.read_bytes()

    def crash(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        drop_after(path, 5)
    assert path.read_bytes() == before


class _FullDisk:
    """A file whose first write fails half-way, as on a full disk; later ones work."""

    def __init__(self, file) -> None:
        self.file, self.writes = file, 0

    def write(self, data: bytes) -> None:
        self.writes += 1
        if self.writes == 1:
            self.file.write(data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        self.file.write(data)

    def close(self) -> None:
        self.file.close()


def test_full_disk_costs_a_line_and_not_the_run(tmp_path, caplog):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics._file = _FullDisk(metrics._file)
    for step in (1, 2, 3):
        metrics.write(step, 1, {"train/loss": 1.0})
    metrics.close()
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [2, 3]
    assert caplog.text.count("No space left") == 1


def test_first_and_last_leave_out_what_was_not_a_number():
    records = [
        {"step": i, "phase": 1, "x": value} for i, value in enumerate([None, 8.0, 1.0, 2.0, None, 3.0, 4.0, 5.0])
    ]
    assert first_and_last(records, "x") == (8.0, 3.0)
    assert first_and_last(records, "y") is None


def test_last_value_of_each_phase():
    records = [{"step": i, "phase": phase, "x": float(i)} for i, phase in enumerate([1, 1, 2, 2])]
    assert last_by_phase([*records, {"step": 9, "phase": 2}], "x") == {1: 1.0, 2: 3.0}
