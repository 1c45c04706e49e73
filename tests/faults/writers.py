"""The project's writers, each as two versions of one thing in a folder, and how to tell which is there."""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file, save_file

from bitgen.checkpoint.format import MODEL_FILE, find_checkpoint
from bitgen.checkpoint.store import CheckpointStore
from bitgen.commands.lora_report import write_report
from bitgen.data.conversations.records import ConversationReader, Turn
from bitgen.data.conversations.writer import writing_conversations
from bitgen.data.record_writer import write_dataset
from bitgen.data.records import DatasetInfo, Record, RecordReader
from bitgen.evaluation.babylm.evaluation import EvaluationData
from bitgen.evaluation.babylm.submission.data import SetData, SubmissionData
from bitgen.evaluation.babylm.submission.layout import TRACKS
from bitgen.evaluation.babylm.submission.model import Revision, SubmissionModel
from bitgen.evaluation.babylm.submission.run import Done, Parts, Submission, write_official
from bitgen.machine.files import replacing_folder, write_whole
from bitgen.memory.files import exclusive, read_memory, write_memory
from bitgen.model.spoken_memory_file import Stored, read_facts, write_facts
from bitgen.vlm.adapter_folder import PARTS, PREFIX, Base, read_adapter, write_adapter
from bitgen.vlm.adapter_merge import merge_folder, unmerge_folder
from support.language_models import tiny_lm

_DATA_PREP = Path(__file__).resolve().parents[2] / "data_prep"


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


def _write_facts(folder: Path, version: int) -> None:
    keys, values = (torch.full((1, width), float(version)) for width in (8, 64))
    write_facts(folder / "facts", Stored((str(version),), keys, values, torch.ones(80)))


def _read_facts(folder: Path) -> float:
    texts, keys, values, _ = read_facts(folder / "facts")
    assert torch.cat([keys, values], dim=1).unique().tolist() == [float(texts[0])]
    return keys[0, 0].item()


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


def _write_smollm2(folder: Path, version: int) -> None:
    """The folder that data_prep/smollm2.py writes, of a small model that stands for the one in the GGUF file."""
    with mock.patch.object(sys, "path", [str(_DATA_PREP), *sys.path]):
        smollm2 = importlib.import_module("smollm2")

    def convert(weights: Path, new: Path, dtype: torch.dtype) -> None:
        tiny_lm(seed=version).save_pretrained(new)

    with mock.patch.object(smollm2, "convert", convert):
        smollm2.write_model(folder / "gguf", folder / "smollm2", ("float32", "bfloat16")[version - 1])


def _read_smollm2(folder: Path) -> float:
    said = json.loads((folder / "smollm2" / "bitgen_smollm2.json").read_text())["dtype"]
    version = ("float32", "bfloat16").index(said) + 1
    expected = tiny_lm(seed=version).state_dict()
    weights = load_file(folder / "smollm2" / "model.safetensors")
    assert all(torch.equal(expected[name], tensor) for name, tensor in weights.items()) and weights
    return float(version)


def _write_submission(folder: Path, version: int) -> None:
    """The folder of predictions that src/submit.py collates, of one set of reading times."""
    model = SubmissionModel(Path("m"), [Revision("main", None, Path("m"), "")], None, None)
    data = SubmissionData([SetData("full_eval", "reading", Path("r"), EvaluationData({}, None), "")], None, None, [])
    predictions = {"reading": {"predictions": [{"id": row, "pred": version, "prev_pred": version} for row in range(9)]}}
    done = {"main": {"full_eval/reading": Done({}, 0.0, lambda: predictions)}}
    nothing = Parts({}, {}, {}, {}, {})
    write_official(folder, model, data, Submission(done, 0, 0, {}), nothing, TRACKS["strict-small"])


def _read_submission(folder: Path) -> float:
    root = folder / "results" / "m"
    collated = json.loads((root / "all_full_preds_and_fast_scores_causal.json").read_text())
    own = json.loads((root / "main" / "zero_shot" / "causal" / "reading" / "predictions.json").read_text())
    assert collated["reading"] == own and collated["blimp"] is None
    (version,) = {row["pred"] for row in own["reading"]["predictions"]}
    return float(version)


# Folders that are written once: they replace nothing, so that a version has a folder of its own.


def _base(folder: Path, version: int) -> Path:
    """A language model of one layer, whose weights are the version."""
    if not folder.exists():
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        save_file({"a.weight": torch.full((3, 3), float(version))}, folder / "model.safetensors")
    return folder


def _adapter(folder: Path, version: int) -> Path:
    """An adapter that adds 3 to every weight of :func:`_base`."""
    if not folder.exists():
        ones = {"lora_A": torch.ones(1, 3), "lora_B": torch.full((3, 1), 3.0)}
        tensors = {f"{PREFIX}a{PARTS[part]}": tensor for part, tensor in ones.items()}
        write_adapter(folder, LoraConfig(r=1, lora_alpha=1, target_modules=["a"]), tensors, Base(f"base {version}"))
    return folder


def _newest(folder: Path, read: Callable[[Path], float]) -> float:
    """The version of the newest folder that is there; each that is there must be whole."""
    found = [(number, read(folder / f"it{number}")) for number in (1, 2) if (folder / f"it{number}").exists()]
    assert found and all(number == value for number, value in found)
    return found[-1][1]


def _once(write: Callable[[Path, int], object], read: Callable[[Path], float]) -> Writer:
    def writes(folder: Path, version: int) -> None:
        if not (folder / f"it{version}").exists():
            write(folder / f"it{version}", version)

    return Writer(writes, lambda folder: _newest(folder, read), ".it*.partial-*")


def _weight(folder: Path) -> float:
    return load_file(folder / "model.safetensors")["a.weight"].unique().item()


def _merge(output: Path, version: int) -> None:
    work = Path(_WORK.name)
    merge_folder(_base(work / f"base{version}", version), _adapter(work / f"adapter{version}", version), output)


def _unmerge(output: Path, version: int) -> None:
    work = Path(_WORK.name)
    merged = work / f"merged{version}"
    if not merged.exists():
        _merge(merged, version)
    unmerge_folder(merged, _adapter(work / f"adapter{version}", version), output)


def _report(output: Path, version: int) -> None:
    write_report(output, {"base_parameters": version}, {"base_spectra": Image.new("L", (version, 1))})


def _read_report(folder: Path) -> float:
    found = json.loads((folder / "report.json").read_text())["base_parameters"]
    assert Image.open(folder / "base_spectra.png").size == (found, 1)
    return float(found)


# What the writers of models read lies elsewhere: only what they write may fail.
_WORK = tempfile.TemporaryDirectory(prefix="writers-")

WRITERS = {
    "smollm2": Writer(_write_smollm2, _read_smollm2, ".smollm2.partial-*"),
    "adapter": _once(_adapter, lambda folder: float(read_adapter(folder).base.name.removeprefix("base "))),
    "merged model": _once(_merge, lambda folder: _weight(folder) - 3),
    "unmerged model": _once(_unmerge, _weight),
    "report": _once(_report, _read_report),
    "file": Writer(_write_file, _read_file, ".file.*.tmp"),
    "folder": Writer(_write_folder, _read_folder, ".it.partial-*"),
    "checkpoint": Writer(_write_checkpoint, _read_checkpoint),
    "memory": Writer(_write_memory, _read_memory),
    "facts": Writer(_write_facts, _read_facts, ".facts.*.tmp"),
    "conversations": Writer(_write_conversations, _read_conversations, ".talks.partial-*"),
    "submission": Writer(_write_submission, _read_submission, ".results.partial-*"),
    "dataset": Writer(_write_dataset, _read_dataset, ".data.partial-*"),
}
