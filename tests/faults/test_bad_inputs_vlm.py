"""Bad inputs for the entries of vision-language models of parts, as ``test_bad_inputs`` has them for the others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bitgen.commands import adapters, lora_report, train_vlm
from bitgen.guards.printable import printable
from bitgen.vlm.adapter_config import AdapterConfig
from bitgen.vlm.adapter_folder import base_of
from bitgen.vlm.adapters import attach, save_adapter
from faults.bad_inputs import HUGE, UNNAMED, Entry, bad_paths_in, cases, command, fault_of
from support.language_models import tiny_lm

TINY_VLM = dict(
    vision_encoder="random",
    vision_hidden_size=32,
    vision_patch_size=14,
    image_size=28,
    select_layer="-1",
    language_model="random",
    language_hidden_size=32,
    language_num_layers=2,
    language_num_heads=2,
    language_vocab_size=300,
    language_positions=64,
    template="plain",
    max_length=32,
    train_data="scenes",
    scenes_train=32,
    scenes_val=8,
    val_generated=0,
    batch_size=4,
    max_steps=1,
    precision="fp32",
    device="cpu",
    progress=False,
    output_dir="NEW",
    log_dir="NEW LOG",
)


def _adapters(name: str) -> Callable[[list[str]], None]:
    return lambda argv: adapters.main([name, *argv])


ENTRIES = {
    "train_vlm": Entry(
        train_vlm.main,
        {f"--{name}": str(value) for name, value in TINY_VLM.items()},
        ("--config", "--train_data", "--val_data", "--init_from", "--language_model", "--vision_encoder"),
        ("--batch_size", "--learning_rate", "--max_length", "--image_size", "--adapter_rank", "--num_frames"),
        ("--connector", "--trains", "--select_layer", "--template", "--stages", "--stage", "--quantization"),
    ),
    "lora_report": Entry(
        lora_report.main,
        {"--model": "BASE", "--rank": "2", "--device": "cpu"},
        ("--model", "--adapter"),
        ("--rank", "--layers"),
        ("--targets", "--kind", "--spectra"),
    ),
    "merge": Entry(
        _adapters("merge"),
        {"--base": "BASE", "--adapter": "ADAPTER", "--output": "NEW"},
        ("--base", "--adapter", "--output"),
    ),
    "unmerge": Entry(
        _adapters("unmerge"),
        {"--merged": "BASE", "--adapter": "ADAPTER", "--output": "NEW"},
        ("--merged", "--adapter", "--output"),
    ),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[str, str]:
    """What the placeholders in :data:`ENTRIES` stand for."""
    folder, lm = tmp_path_factory.mktemp("good"), tiny_lm()
    lm.save_pretrained(folder / "base")
    attach(lm, AdapterConfig("lora", 2, 4.0, 0.0, targets="q_proj"))
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(0.01)
    save_adapter(lm, folder / "adapter", base_of(folder / "base"))
    return {"BASE": str(folder / "base"), "ADAPTER": str(folder / "adapter")}


def _may_be_meant(flag: str, value: str, paths: dict[str, str]) -> bool:
    """Whether a value is a good one after all: then it only must not end in a traceback."""
    if value == HUGE:
        return True
    if value in ("", "None") and flag in ("--init_from", "--val_data", "--image_size", "--stages", "--stage"):
        return True  # off
    if flag == "--config" and value in (paths["empty file"], paths["null.json"]):
        return True  # no settings: the defaults
    # Any name that is not taken will do.
    return flag == "--output" and value not in ("", paths["model"], paths["run"], paths["long"])


@pytest.mark.parametrize("name", ENTRIES)
def test_every_bad_input_ends_in_one_line(name: str, good, tmp_path, monkeypatch) -> None:
    entry, faults, count = ENTRIES[name], [], 0
    paths = bad_paths_in(tmp_path / "bad")
    monkeypatch.chdir(tmp_path)
    for number, (flag, value) in enumerate(cases(entry, paths)):
        count += 1
        places = {"NEW": str(tmp_path / f"new{number}"), "NEW LOG": str(tmp_path / f"log{number}")}
        fault = fault_of(entry.main, command(entry, {**good, **places}, flag, value), flag, value)
        if fault and not (fault.startswith(("status 0", UNNAMED)) and _may_be_meant(flag, value, paths)):
            faults.append(printable(f"{flag} {value[-60:]!r}: {fault}"))
    assert not faults, f"{len(faults)} of {count}:\n" + "\n".join(faults)
    assert count >= 60
