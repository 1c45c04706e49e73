"""What is taken from the Hub's cache as it is, and when the Hub is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub.errors import IncompleteSnapshotError

from bitgen.machine import hub

WANTED = ("*.json", "model*.safetensors", "tokenizer*")
SHARDS = ("model-1.safetensors", "model-2.safetensors")
INDEX = json.dumps({"weight_map": dict(zip("ab", SHARDS, strict=True))})
WHOLE = {
    "config.json": "{}",
    "tokenizer.json": "{}",
    "tokenizer_config.json": "{}",
    "model.safetensors.index.json": INDEX,
} | dict.fromkeys(SHARDS, "")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A snapshot's folder; what the Hub would give is ``hub`` beside it."""

    def snapshot(name, revision, allow_patterns, ignore_patterns, local_files_only=False):
        asked.append(None if local_files_only else revision)
        return str(tmp_path / ("cached" if local_files_only else "hub" if revision is None else f"at {revision}"))

    asked: list[str | None] = []
    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "hub_answers", lambda: True)
    for name in ("cached", "at cached"):
        (tmp_path / name).mkdir()
    return tmp_path / "cached"


def filled(folder: Path, without: str = "") -> None:
    for name, text in WHOLE.items():
        if name != without:
            (folder / name).write_text(text)


@pytest.mark.parametrize("lacks", ["", "config.json", "tokenizer.json", "tokenizer_config.json", "model-2.safetensors"])
def test_a_part_of_a_model_in_the_cache_is_completed(cache: Path, lacks: str) -> None:
    filled(cache, lacks)
    filled(cache.parent / "at cached")  # its own commit
    found = hub.hub_folder("some/model", None, "language model", WANTED)
    assert found == (cache if not lacks else cache.parent / "at cached")


@pytest.mark.parametrize("given", [None, "a-branch"])
def test_a_commit_that_lacks_what_is_wanted_is_left_for_a_newer_one(cache: Path, given: str | None) -> None:
    """As models got safetensors later; not where a revision was asked for."""
    filled(cache, "model-2.safetensors")
    filled(cache.parent / "at cached", "model-2.safetensors")
    found = hub.hub_folder("some/model", given, "language model", WANTED)
    assert found.name == ("hub" if given is None else "at a-branch")


@pytest.mark.parametrize("answers", [True, False])
def test_a_part_that_the_cache_knows_for_one_is_completed_or_taken(cache: Path, monkeypatch, answers: bool) -> None:
    filled(cache, "tokenizer.json")
    filled(cache.parent / "at cached")
    known = hub.snapshot_download

    def incomplete(*arguments, local_files_only=False, **named):
        if local_files_only:
            raise IncompleteSnapshotError("a part", snapshot_path=str(cache))
        return known(*arguments, **named)

    monkeypatch.setattr(hub, "snapshot_download", incomplete)
    monkeypatch.setattr(hub, "hub_answers", lambda: answers)
    found = hub.hub_folder("some/model", None, "language model", WANTED)
    assert found == (cache.parent / "at cached" if answers else cache)


def test_a_model_in_one_file_is_whole_with_it(cache: Path) -> None:
    for name in ("config.json", "tokenizer.model", "tokenizer_config.json", "adapter_model.safetensors"):
        (cache / name).write_text("{}")
    assert hub.hub_folder("some/model", None, "language model", WANTED).name == "hub"
    (cache / "model.safetensors").write_text("")
    assert hub.hub_folder("some/model", None, "language model", WANTED) == cache


def test_where_no_hub_answers_the_cache_is_taken_as_it_is(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(cache, "tokenizer.json")
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    assert hub.hub_folder("some/model", None, "language model", WANTED) == cache


def test_where_the_hub_refuses_the_cache_is_taken_as_it_is(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(cache, "tokenizer.json")
    known = hub.snapshot_download

    def refuses(*arguments, local_files_only=False, **named):
        if not local_files_only:
            raise PermissionError("gated")
        return known(*arguments, local_files_only=True, **named)

    monkeypatch.setattr(hub, "snapshot_download", refuses)
    assert hub.hub_folder("some/model", None, "language model", WANTED) == cache


def test_a_configuration_alone_is_enough_where_it_is_all_that_is_wanted(cache: Path) -> None:
    assert hub.hub_folder("some/model", None, "language model", ("config.json",)).name == "hub"
    (cache / "config.json").write_text("{}")
    assert hub.hub_folder("some/model", None, "language model", ("config.json",)) == cache
