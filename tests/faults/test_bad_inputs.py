"""Some sixty bad inputs for each entry: one line that names the thing, a status that is not 0, no traceback, no hang.

An entry is called in this process, as its script calls it. Whatever leaves it but ``SystemExit`` would be a traceback.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from bitgen.commands import ask, caption, evaluate, export, memory, train
from bitgen.data.tokenizer import train_bpe
from bitgen.guards.printable import printable
from bitgen.show.run_logging import FILE_ONLY
from support.runs import REPOSITORY, TINY, written_run
from support.tiny_vlms import exported_vlm

LONGEST = 30  # seconds
UNNAMED = "does not name it:"
MOST_MEMORY = 4 << 30  # bytes more than before: what reads without a bound fails, and the machine lives

# ---- what is wrong ----

NUMBERS = ("nan", "inf", "-inf", "1e999", "-1", "", "x", "1,5", "1 2", "\x1b[2J", "None", "[]")
HUGE = "9" * 400  # may mean "all there are": it must only not end in a traceback, and not take for ever
WORDS = ("", "none of these", "../..", "\x1b[2J", "a\nb", "x" * 5000, "\udcff")


def _paths(folder: Path) -> dict[str, str]:
    """Paths at which no entry finds what it looks for."""
    folder.mkdir()
    (folder / "empty file").write_bytes(b"")
    (folder / "empty folder").mkdir()
    (folder / "bytes").write_bytes(np.random.default_rng(0).bytes(4096))
    (folder / "null.json").write_text("null")
    (folder / "list.json").write_text("[1, 2]")
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "huge number.json").write_text('{"images": 1e999, "annotations": NaN}')
    (folder / "invalid.txt").write_bytes(b"a.jpg\t\xff\xfe\n\x00")
    (folder / "aliases.yaml").write_text(_aliases())
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    (folder / "device").symlink_to("/dev/zero")
    (folder / "config.json").write_text('{"model_type": "bitgen"}')
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text('{"model_type": ["bitgen"], "vocab_size": "many"}')
    (folder / "model" / "model.safetensors").write_bytes(b"\xff" * 100)
    (folder / "run").mkdir()
    (folder / "run" / "step-00000001").mkdir()
    (folder / "run" / "step-00000001" / "manifest.json").write_text("[]")
    named = {path.name: str(path) for path in folder.iterdir()}
    named |= {"missing": str(folder / "missing"), "long": str(folder / ("x" * 300))}
    return named | {
        "newline": str(folder / "a\nb"),
        "escape": str(folder / "\x1b[31m"),
        "surrogate": "\udcff",
        "nothing": "",
    }


def _aliases() -> str:
    """600 bytes of YAML that are 10^9 values when they are written out."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    return "\n".join([*lines, "batch_size: *a8"])


# ---- entries ----


class Entry(NamedTuple):
    """A command: ``good`` arguments as flag -> value, and its flags by what they take."""

    main: Callable[[list[str]], int | None]
    good: dict[str, str]
    paths: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    words_after: tuple[str, ...] = ()


def _script(name: str) -> Callable[[list[str]], None]:
    """A preparation script as ``python data_prep/NAME.py`` runs it."""

    def main(argv: list[str]) -> None:
        flags, script = importlib.import_module("_common.flags"), importlib.import_module(name)
        flags.run(lambda _: script.main(argv))

    return main


TRAIN = {f"--{name}": str(value) for name, value in TINY.items()}
TRAIN |= {
    "--train_data": "scenes",
    "--device": "cpu",
    "--output_dir": "NEW",
    "--log_dir": "NEW LOG",
}
ENTRIES = {
    "train": Entry(
        train.main,
        TRAIN,
        ("--config", "--train_data", "--val_data", "--text_data", "--tokenizer", "--init_from", "--resume"),
        ("--batch_size", "--learning_rate", "--vocab_size", "--num_layers", "--temperature", "--max_seq_len"),
        ("--precision", "--optimizer", "--vision_encoder"),
    ),
    "evaluate": Entry(
        evaluate.main,
        {"--checkpoint": "RUN", "--data": "scenes", "--max_images": "4", "--bootstrap": "0", "--device": "cpu"},
        ("--checkpoint", "--data", "--captioner", "--output"),
        ("--rerank_top_k", "--rerank_cosine_weight", "--num_beams", "--batch_size", "--max_images", "--bootstrap"),
        ("--task", "--precision"),
    ),
    "export": Entry(
        export.main,
        {"--checkpoint": "RUN", "--output": "NEW"},
        ("--checkpoint", "--results"),
        ("--merge_lora", "--words_seen_checkpoints"),
        ("--private",),
    ),
    "caption": Entry(
        caption.main, {"--model": "RUN"}, ("--model", "IMAGE"), ("--num_beams", "--max_new_tokens"), (), ("IMAGE",)
    ),
    "ask": Entry(
        ask.main,
        {"--model": "VLM", "--question": "What is it?", "--max_new_tokens": "2"},
        ("--model", "IMAGE"),
        ("--num_beams", "--max_new_tokens", "--temperature"),
        ("--device",),
        ("IMAGE",),
    ),
    "export of parts": Entry(
        export.main,
        {"--checkpoint": "VLM", "--output": "NEW"},
        ("--results", "--checkpoint"),
        ("--merge_lora", "--words_seen_checkpoints"),
        ("--format",),
    ),
    "memory": Entry(
        memory.main,
        {"--model": "RUN", "--memory": "NEW"},
        ("--model", "--memory", "IMAGE"),
        ("--slots",),
        ("--device",),
        ("teach", "IMAGE", "a text"),
    ),
    "flickr8k": Entry(
        _script("flickr8k"),
        {"--captions": "CAPTIONS", "--split": "SPLIT", "--images": "FOLDER", "--output": "NEW"},
        ("--captions", "--split", "--images"),
        ("--limit", "--max_failed_fraction", "--max_image_pixels"),
    ),
    "coco": Entry(
        _script("coco"),
        {"--annotations": "COCO", "--images": "FOLDER", "--output": "NEW"},
        ("--annotations", "--images", "--exclude"),
        ("--limit", "--max_failed_fraction", "--max_image_pixels"),
    ),
    "image_folder": Entry(
        _script("image_folder"),
        {"--folder": "FOLDER", "--output": "NEW"},
        ("--folder", "--exclude"),
        ("--limit", "--max_failed_fraction", "--max_image_pixels"),
        ("--caption_column",),
    ),
    "conversations": Entry(
        _script("conversations"),
        {"--conversations": "CONVERSATIONS", "--images": "FOLDER", "--output": "NEW"},
        ("--conversations", "--images"),
        ("--frames", "--limit", "--max_failed_fraction", "--max_image_pixels"),
        ("--check_images",),
    ),
    "localized_narratives": Entry(
        _script("localized_narratives"),
        {"--narratives": "NARRATIVES", "--images": "FOLDER", "--output": "NEW"},
        ("--narratives", "--images"),
        ("--limit", "--max_failed_fraction"),
    ),
    "cc3m": Entry(
        _script("cc3m"),
        {"--tsv": "PAIRS", "--output": "NEW"},
        ("--tsv",),
        ("--concurrency", "--timeout", "--retries", "--max_redirects", "--max_bytes", "--image_size", "--jpeg_quality"),
        ("--resize_side",),
    ),
    "babylm_text": Entry(
        _script("babylm_text"),
        {"--text": "TEXT", "--tokenizer": "TOKENIZER", "--output": "NEW"},
        ("--text", "--tokenizer"),
        ("--max_document_words", "--min_document_words", "--val_fraction", "--limit"),
    ),
    "train_tokenizer": Entry(
        _script("train_tokenizer"),
        {"--text": "TEXT", "--output": "NEW"},
        ("--text", "--captions"),
        ("--vocab_size", "--max_document_words"),
    ),
    "babylm_multimodal": Entry(
        _script("babylm_multimodal"),
        {"--part": "local_narr", "--folder": "FOLDER", "--output": "NEW"},
        ("--folder", "--exclude"),
        ("--limit", "--max_failed_fraction"),
        ("--part",),
    ),
    "cache_features": Entry(
        _script("cache_features"),
        {**TRAIN, "--feature_cache": "NEW"},
        ("--config", "--train_data", "--init_from"),
        ("--batch_size", "--image_size", "--vision_num_layers"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _scripts() -> Iterator[None]:
    sys.path.insert(0, str(REPOSITORY / "data_prep"))
    yield
    sys.path.remove(str(REPOSITORY / "data_prep"))


@pytest.fixture
def bad_paths(tmp_path_factory) -> dict[str, str]:
    return _paths(tmp_path_factory.mktemp("bad") / "paths")


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[str, str]:
    """What the placeholders in :data:`ENTRIES` stand for."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("good")
    (folder / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (20, 20), (60 * number, 0, 0)).save(folder / "images" / f"{number}.png")
    (folder / "captions.txt").write_text("image,caption\n" + "".join(f"{n}.png,a square\n" for n in range(3)))
    (folder / "split.txt").write_text("".join(f"{n}.png\n" for n in range(3)))
    (folder / "images" / "metadata.csv").write_text(
        "file_name,text\n" + "".join(f"{n}.png,a square\n" for n in range(3))
    )
    names = [{"id": n, "file_name": f"{n}.png"} for n in range(3)]
    captions = [{"image_id": n, "caption": "a square"} for n in range(3)]
    (folder / "coco.json").write_text(json.dumps({"images": names, "annotations": captions}))
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a square"}]
    (folder / "talk.json").write_text(json.dumps([{"image": f"{n}.png", "conversations": turns} for n in range(3)]))
    lines = [json.dumps({"image_id": str(n), "caption": "a square"}) for n in range(3)]
    (folder / "narratives.jsonl").write_text("\n".join(lines))
    (folder / "pairs.tsv").write_text("".join(f"a square\thttp://127.0.0.1:9/{n}.png\n" for n in range(3)))
    (folder / "part.train").write_text("A sentence of words.\n\n" * 50)
    train_bpe(["a square", "a sentence of words"] * 50, 280).save_pretrained(str(folder / "tokenizer"))
    found = {"RUN": written_run(), "CAPTIONS": folder / "captions.txt", "SPLIT": folder / "split.txt"}
    found |= {"NARRATIVES": folder / "narratives.jsonl", "PAIRS": folder / "pairs.tsv", "TEXT": folder / "part.train"}
    found |= {"CONVERSATIONS": folder / "talk.json", "VLM": exported_vlm(folder)}
    found |= {"TOKENIZER": folder / "tokenizer"}
    found |= {"COCO": folder / "coco.json", "FOLDER": folder / "images", "IMAGE": folder / "images" / "1.png"}
    return {name: str(path) for name, path in found.items()}


def _cases(entry: Entry, paths: dict[str, str]) -> list[tuple[str, str]]:
    """(flag, bad value) of an entry, and what is wrong with the command line itself."""
    cases = [(flag, path) for flag in entry.paths for path in paths.values()]
    cases += [(flag, number) for flag in entry.numbers for number in (*NUMBERS, HUGE)]
    cases += [(flag, word) for flag in entry.words for word in WORDS]
    return [*cases, ("--no_such_flag", "1"), ("--\x1b[2J", "1")]


def _may_be_meant(flag: str, value: str, paths: dict[str, str]) -> bool:
    """Whether a value is a good one after all: then it only must not end in a traceback."""
    if value == HUGE or (flag, value) == ("--rerank_cosine_weight", "-1"):
        return True
    if value in ("", "None") and flag in ("--resume", "--init_from", "--val_data", "--text_data", "--tokenizer"):
        return True  # off
    if flag == "--config" and value in (paths["empty file"], paths["null.json"]):
        return True  # no settings: the defaults
    if flag == "--text" and Path(value).suffix in (".json", ".yaml", ".txt"):
        return True  # any text will do
    if flag == "--split" and os.path.isfile(value):
        return True  # names of images that are not there, which are counted and named
    written = flag == "--output" or (flag == "--memory" and not os.path.isfile(value))
    return written and value not in ("", paths["empty folder"], paths["model"], paths["run"], paths["long"])


@pytest.mark.parametrize("name", ENTRIES)
def test_every_bad_input_ends_in_one_line(name: str, good, bad_paths, tmp_path, monkeypatch) -> None:
    entry, faults, count = ENTRIES[name], [], 0
    monkeypatch.chdir(tmp_path)
    for number, (flag, value) in enumerate(_cases(entry, bad_paths)):
        count += 1
        argv = _command(
            entry,
            {**good, "NEW": str(tmp_path / f"new{number}"), "NEW LOG": str(tmp_path / f"log{number}")},
            flag,
            value,
        )
        meant = _may_be_meant(flag, value, bad_paths)  # asked before a file is there
        fault = _fault(entry.main, argv, flag, value)
        if fault and not (fault.startswith(("status 0", UNNAMED)) and meant):
            faults.append(printable(f"{flag} {value[:60]!r}: {fault}"))
    assert not faults, f"{len(faults)} of {count}:\n" + "\n".join(faults)
    assert count >= 60


def _command(entry: Entry, good: dict[str, str], flag: str, value: str) -> list[str]:
    words = [value if part == flag else good.get(part, part) for part in entry.words_after]
    given = {**entry.good, flag: value} if flag.startswith("--") else entry.good
    flags = [part for name, text in given.items() for part in (name, good.get(text, text))]
    return [*flags, *words]


def _fault(main: Callable, argv: list[str], flag: str, value: str) -> str | None:
    """What is wrong with how an entry takes a bad input; None: it says it in one line and ends."""
    said, log = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(log)
    handler.addFilter(lambda record: not any(hasattr(record, name) for name in FILE_ONLY))  # not for a person
    status: object = 0

    def too_long(*_: object) -> None:
        raise TimeoutError

    before, limits = signal.signal(signal.SIGALRM, too_long), resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MOST_MEMORY, limits[1]))
    signal.alarm(LONGEST)
    root, others = logging.getLogger(), logging.getLogger().handlers[:]
    root.handlers[:] = [handler]  # pytest's would carry half characters to the process that reports, which takes none
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            status = main(argv)
    except SystemExit as end:
        status = end.code
    except TimeoutError:
        return f"not done after {LONGEST} s"
    except BaseException as error:  # a traceback for whoever ran it
        return f"{type(error).__name__}: {str(error)[:200]!r}"
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, before)
        root.handlers[:] = others
    if status in (0, None):
        return "status 0"
    text = said.getvalue() + log.getvalue()
    last = [line for line in text.splitlines() if line.strip()][-1:]
    if "Traceback" in text or not last:
        return f"says {text[-300:]!r}"
    if not all(character.isprintable() or character in "\n\t" for character in text):
        return f"steers the terminal: {text[-200:]!r}"
    named = (flag.lstrip("-"), value[:20], Path(value).name[:20] if value else "empty")
    if value and not any(part and re.sub(r"[^\w]", "", part) in re.sub(r"[^\w]", "", text) for part in named):
        return f"{UNNAMED} {last[0][:200]!r}"
    return None
