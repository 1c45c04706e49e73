"""The entry's last word: one clean message and an exit status for whatever goes wrong, tables when all goes well."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from bitgen.checkpoint import store as checkpoint_store
from bitgen.checkpoint.format import checkpoint_folders
from bitgen.data.scenes.dataset import ScenesDataset


def test_a_whole_run_ends_with_tables_the_best_checkpoint_and_what_to_do_next(main, tiny_config) -> None:
    status, said = main(val_data="scenes")
    assert status == 0
    for part in (
        "Phase 1",
        "LoRA adapters FROZEN | Trainable params:",
        "Phase 2",
        "after phase 1",
        "after phase 2",
        "best checkpoint",
        "tensorboard --logdir",
        "python src/evaluate.py --checkpoint",
    ):
        assert part in said, part
    folder = Path(tiny_config().output.output_dir)
    assert (folder / "best").is_symlink() and (folder / "parameters.txt").exists() and (folder / "tokenizer").is_dir()


@pytest.mark.parametrize(
    ("settings", "drop", "named"),
    [
        ({}, ("train_data",), ("train_data is not set", "data_prep/flickr8k.py", "make quickstart")),
        ({"train_data": "nowhere"}, (), ("nowhere does not exist", "data_prep")),
        ({"batch_size": 40, "scenes_train": 12, "queue_size": 64}, (), ("12",)),
        ({"grad_accum_steps": 99}, (), ("--grad_accum_steps 12",)),
        ({"vision_encoder": "no/such-encoder"}, (), ("no/such-encoder", "hf download", "--vision_encoder")),
        ({"resume": "nowhere/step-00000001"}, (), ("nowhere/step-00000001", "--resume auto")),
        ({"colour": "red"}, (), ("--colour",)),
    ],
)
def test_what_cannot_be_is_one_message_and_status_2(main, settings: dict, drop: tuple, named: tuple) -> None:
    status, said = main(drop=drop, **settings)
    assert status == 2
    assert "Traceback" not in said and said.count("error: ") == 1
    for part in named:
        assert part in said


def test_a_second_run_in_the_same_folder_is_refused_before_anything_is_touched(main, tiny_config) -> None:
    assert main(max_steps=1)[0] == 0
    log = Path(tiny_config().output.log_dir) / "training.log"
    before = log.read_text()
    status, said = main(max_steps=1)
    assert status == 2 and "--resume auto" in said
    assert log.read_text() == before


def test_a_full_disk_stops_with_the_remedy_and_keeps_the_checkpoint_before(main, tiny_config, monkeypatch) -> None:
    save_file = checkpoint_store.save_file

    def fill(tensors: dict, path: Path) -> None:
        if "step-00000004" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint_store, "save_file", fill)
    status, said = main(save_steps=2)
    assert status == 1
    assert "No space left" in said and "free space" in said and "--resume auto" in said and "Traceback" not in said
    folder = Path(tiny_config().output.output_dir)
    assert [path.name for path in checkpoint_folders(folder)] == ["step-00000002"]
    assert not list(folder.glob(".tmp*"))


def test_an_output_folder_without_permission(main, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, said = main(output_dir=str(tmp_path / "file" / "run"))
    assert status == 2
    assert "cannot write there" in said and "Traceback" not in said


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_record_that_cannot_be_read_is_named(main, tiny_config, monkeypatch, num_workers: int) -> None:
    def damaged(self: ScenesDataset, key: object) -> dict:
        raise ValueError("dataset x, record 3 (cat.jpg) cannot be read as an image: replace it")

    monkeypatch.setattr(ScenesDataset, "__getitem__", damaged)
    status, said = main(num_workers=num_workers)
    assert status == 1
    assert "record 3 (cat.jpg) cannot be read" in said and "Traceback" not in said
    log = (Path(tiny_config().output.log_dir) / "training.log").read_text()
    assert "Traceback" in log, "the log has what the message leaves out"


def test_a_run_that_diverges_ends_with_status_1(main, monkeypatch) -> None:
    status, said = main(max_nonfinite_steps=2, learning_rate=1e30, warmup_steps=0)
    assert status == 1
    assert "2 steps in a row" in said and "--learning_rate" in said
