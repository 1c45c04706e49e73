"""The project's writers, each as two versions of one thing in a folder, and how to tell which is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from bitgen.checkpoint.format import MODEL_FILE, find_checkpoint
from bitgen.checkpoint.store import CheckpointStore
from bitgen.data.conversation_writer import writing_conversations
from bitgen.data.conversations import ConversationReader, Turn
from bitgen.data.record_writer import write_dataset
from bitgen.data.records import DatasetInfo, Record, RecordReader
from bitgen.machine.files import replacing_folder, write_whole
from bitgen.memory.files import exclusive, read_memory, write_memory


class Writer(NamedTuple):
    """``write(folder, version)`` puts version 1 or 2 there; ``read(folder)`` is the version that a user gets.

    ``read`` raises for anything that is neither. ``leftovers``: what a killed process may leave beside it until the
    next write, as a pattern of names.
    """

    write: Callable[[Path, int], object]
    read: Callable[[Path], float]
    leftovers: str = ""


def _write_file(folder: Path, version: int) -> None:
    write_whole(folder / "file", f"{version}".encode() * 20_000)


def _read_file(folder: Path) -> float:
    content = (folder / "file").read_text()
    assert len(content) == 20_000 and len(set(content)) == 1
    return float(content[0])


def _write_folder(folder: Path, version: int) -> None:
    with replacing_folder(folder / "it") as new:
        for name in ("a", "b"):
            (new / name).write_text(str(version))


def _read_folder(folder: Path) -> float:
    found = {(folder / "it" / name).read_text() for name in ("a", "b")}
    assert len(found) == 1
    return float(found.pop())


def _write_checkpoint(folder: Path, version: int) -> None:
    store = CheckpointStore(folder, keep=1)
    weights = {"weight": torch.full((300,), float(version))}
    base = store.store_base({"base": torch.arange(9.0)})
    store.save(version, weights, {"step": version, "run": weights}, {"config.yaml": "a: 1\n"}, base, is_best=True)


def _read_checkpoint(folder: Path) -> float:
    checkpoint = find_checkpoint("auto", folder)
    assert checkpoint is not None and not checkpoint.damaged
    for link in ("latest", "best"):
        assert (folder / link / MODEL_FILE).is_file()
    assert checkpoint.state["run"]["weight"].unique().tolist() == [checkpoint.step]
    return checkpoint.step


def _write_memory(folder: Path, version: int) -> None:
    texts = [{"id": "1", "text": str(version), "written": "", "edited": None}]
    header = {"slots": 4, "widen": False, "sigma": 0.1, "cue_noise": 0.1, "seed": 0, "next_id": 2, "episodes": texts}
    with exclusive(folder / "memory"):
        write_memory(folder / "memory", torch.full((1, 64), float(version)), torch.ones(64), None, header)


def _read_memory(folder: Path) -> float:
    codes, _, _, header = read_memory(folder / "memory")
    assert codes.unique().tolist() == [float(header["episodes"][0]["text"])]
    return codes[0, 0].item()


def _write_dataset(folder: Path, version: int) -> None:
    records = (Record(f"{version}-{number}", bytes([version]) * 3000, [f"caption {version}"]) for number in range(4))
    write_dataset(folder / "data", records, DatasetInfo(kind="images", source="test"), overwrite=True)


def _read_dataset(folder: Path) -> float:
    reader = RecordReader(folder / "data")
    found = {record.image_id[0] for record in map(reader.__getitem__, range(len(reader)))}
    assert len(reader) == 4 and len(found) == 1
    return float(found.pop())


def _write_conversations(folder: Path, version: int) -> None:
    with writing_conversations(folder / "talks", "test", overwrite=True) as writer:
        for number in range(4):
            rows = [writer.picture("a", bytes([version]) * 3000), writer.picture("b", bytes([version, number]) * 2000)]
            writer.add(f"{version}-{number}", [rows], [Turn("user", "<image>"), Turn("assistant", f"{version}")])


def _read_conversations(folder: Path) -> float:
    reader = ConversationReader(folder / "talks")
    talks = map(reader.__getitem__, range(4))
    found = {(talk.id[0], talk.answers[0], *(picture[:1] for picture in talk.visuals[0])) for talk in talks}
    assert len(reader) == 4 and reader.info.num_pictures == 5 and len(found) == 1
    name, answer, *pictures = found.pop()
    assert name == answer and pictures == [bytes([int(name)])] * 2
    return float(name)


WRITERS = {
    "file": Writer(_write_file, _read_file, ".file.*.tmp"),
    "folder": Writer(_write_folder, _read_folder, ".it.partial-*"),
    "checkpoint": Writer(_write_checkpoint, _read_checkpoint),
    "memory": Writer(_write_memory, _read_memory),
    "conversations": Writer(_write_conversations, _read_conversations, ".talks.partial-*"),
    "dataset": Writer(_write_dataset, _read_dataset, ".data.partial-*"),
}
