"""Models of parts trained from a feature cache: the same losses as live, to the last bit, and no encoder at work."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from bitgen.config.values import ConfigError
from bitgen.config.vlm import VlmConfig, stages_of
from bitgen.data.conversations.records import IMAGE_MARKER, ConversationReader, Turn
from bitgen.data.conversations.writer import writing_conversations
from bitgen.feature_cache import store
from bitgen.feature_cache.conversations import tower_fingerprint
from bitgen.run import RunFailed
from bitgen.tasks.recipe import train_recipe
from bitgen.trained_vlm import open_vlm, own_weights, vlm_folder
from bitgen.vlm.vision import VisionTower, build_tower
from support.tiny_vlms import tower_folder
from support.vlm_runs import tiny_flags

COLOURS = ("red", "green", "blue", "white", "black", "yellow")


def write_talk(folder: Path, seed: int, damaged: bool = False) -> Path:
    """Conversations of two turns and one or two pictures of noise; one shows none. ``damaged``: two cannot be used."""
    random = np.random.default_rng(seed)
    with writing_conversations(folder, "a test") as writer:
        rows = []
        for number in range(6):
            content = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(content, "PNG")
            payload = b"no picture" if damaged and number == 2 else content.getvalue()
            rows.append(writer.picture(f"{number}.png", payload))
        for number in range(12):
            shown = [[rows[number % 6]]] if number % 3 else [[rows[number % 6]], [rows[(number + 1) % 6]]]
            shown = [] if number == 11 else [[]] if damaged and number == 7 else shown
            said = f"a {COLOURS[number % 6]} circle and a {COLOURS[(number + 2) % 6]} star"
            marks = "\n".join([IMAGE_MARKER] * len(shown))
            writer.add(f"c{number}", shown, [Turn("user", f"{marks}\nWhat is it?"), Turn("assistant", said)])
    return folder


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    flags = tiny_flags(max_steps=2, output_dir=folder / "out", log_dir=folder / "log", stage="language")
    config = VlmConfig.parse(flags)
    assert train_recipe(stages_of(config, {"max_steps"}), resume=False) == 0
    return folder / "out" / "language"


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("talk")
    return write_talk(folder / "train", 0), write_talk(folder / "val", 1)


def settings_of(language, talk, folder, **changes):
    """A stage that trains connector and adapter under a frozen encoder."""
    config = VlmConfig.parse(tiny_flags())
    places = dict(output_dir=str(folder / "out"), log_dir=str(folder / "log"), init_from=str(language))
    data = dict(train_data=str(talk[0]), val_data=str(talk[1]), trains="connector,adapter", adapter="lora")
    rates = dict(learning_rate=0.01, optimizer="adamw", select_layer="1,-1", stages=None, max_steps=6, eval_steps=3)
    return config.replace(**{**places, **data, **rates, "num_epochs": 3, "log_steps": 1, **changes})


def losses(folder: Path) -> list[tuple[str, float]]:
    entries = [json.loads(line) for line in (folder / "log" / "metrics.jsonl").open()]
    names = ("train/loss", "val/loss", "train/grad_norm", "val/bleu1", "val/meteor")
    return [(name, entry[name]) for entry in entries for name in names if name in entry]


def run(config) -> None:
    config.validate()
    assert train_recipe(stages_of(config), resume=config.training.resume is not None) == 0


def test_cached_and_live_training_have_the_same_losses(language, talk, tmp_path, monkeypatch) -> None:
    run(settings_of(language, talk, tmp_path / "live"))
    live = losses(tmp_path / "live")
    assert len([name for name, _ in live if name == "train/loss"]) >= 2
    assert len([name for name, _ in live if name == "val/loss"]) >= 2
    cached = dict(feature_cache=str(tmp_path / "cache"), feature_cache_dtype="float32")
    run(settings_of(language, talk, tmp_path / "first", **cached))
    assert losses(tmp_path / "first") == live

    # Filled once, it is read: the encoder sees no picture again. (What of it can learn is asked on the meta device.)
    forward = VisionTower.forward

    def on_meta_alone(self: VisionTower, pixels: torch.Tensor) -> torch.Tensor:
        return forward(self, pixels) if pixels.is_meta else pytest.fail("the encoder was run")

    monkeypatch.setattr(VisionTower, "forward", on_meta_alone)
    run(settings_of(language, talk, tmp_path / "second", **cached))
    assert losses(tmp_path / "second") == live
    assert len(list((tmp_path / "cache").glob("*/features.bin"))) == 2  # of both splits


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_features_kept_in_fewer_bits_train_in_float32(language, talk, tmp_path, dtype) -> None:
    cached = dict(feature_cache=str(tmp_path / "cache"), feature_cache_dtype=dtype, precision="fp32")
    few = dict(max_steps=2, connector="linear", precision="fp32")
    run(settings_of(language, talk, tmp_path, **{**cached, **few}))
    run(settings_of(language, talk, tmp_path / "live", **few))
    found, live = (dict(losses(place)) for place in (tmp_path, tmp_path / "live"))
    assert found and found == pytest.approx(live, rel=2e-2) and found != live
    assert list((tmp_path / "cache").glob("*/features.bin"))


def test_adapters_of_a_cached_encoder_stay_in_the_checkpoints(language, talk, tmp_path) -> None:
    """Its base weights are not needed any more, and are in no checkpoint; its adapters are."""
    tuned = dict(vision_tuning="lora", max_steps=2, eval_steps=100)
    run(settings_of(language, talk, tmp_path / "first", trains="connector,vision", adapter="none", **tuned))
    log = (tmp_path / "first" / "log" / "training.log").read_text()
    [in_table] = re.findall(r"^ *total +[\d,]+ +([\d,]+)$", log, re.MULTILINE)
    assert in_table in re.findall(r"Trainable params: ([\d,]+)", log)  # of the encoder its adapters alone
    more = dict(init_from=str(tmp_path / "first" / "out"), feature_cache=str(tmp_path / "cache"), precision="fp32")
    run(settings_of(language, talk, tmp_path / "then", trains="connector", adapter="none", **tuned, **more))
    before, after = (
        {name: tensor for name, tensor in own_weights(vlm_folder(tmp_path / part / "out")).items() if ".lora_" in name}
        for part in ("first", "then")
    )
    assert before and before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    open_vlm(tmp_path / "then" / "out")


def test_what_an_encoder_has_learned_is_not_left_behind(language, talk, tmp_path) -> None:
    """Its adapters: the next stage would see with the published encoder, and its connector would not know it."""
    settings = dict(vision_encoder=str(tower_folder(tmp_path / "tower")), image_size=None, select_layer="-1")
    settings |= dict(adapter="none", max_steps=1, eval_steps=100)
    tuned = dict(trains="connector,vision", vision_tuning="lora", **settings)
    run(settings_of(language, talk, tmp_path / "first", **tuned))
    places = dict(init_from=str(tmp_path / "first" / "out"), trains="connector", **settings)
    with pytest.raises(ConfigError, match="has changed the encoder, and this stage takes it as it was"):
        run(settings_of(language, talk, tmp_path / "then", vision_tuning="frozen", **places))


def test_what_cannot_be_seen_stands_back_as_it_does_live(language, talk, tmp_path) -> None:
    data = (write_talk(tmp_path / "damaged", 0, damaged=True), talk[1])
    more = dict(max_bad_fraction=0.9)
    run(settings_of(language, data, tmp_path / "live", **more))
    cached = dict(feature_cache=str(tmp_path / "cache"), feature_cache_dtype="float32", **more)
    run(settings_of(language, data, tmp_path / "cached", **cached))
    assert losses(tmp_path / "cached") == losses(tmp_path / "live")


def test_pictures_that_change_are_refused(language, talk, tmp_path) -> None:
    config = settings_of(language, ("scenes", "scenes"), tmp_path, feature_cache=str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match="feature_cache is on, but train_data: scenes are drawn afresh"):
        run(config)


def test_a_disk_that_is_too_small_names_settings_that_there_are(language, talk, tmp_path, monkeypatch) -> None:
    small = SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(store, "shutil", small)  # the cache's disk, not that of checkpoints
    with pytest.raises(RunFailed, match="0.00 GB free. Write --feature_cache_dtype int8") as caught:
        run(settings_of(language, talk, tmp_path, feature_cache=str(tmp_path / "cache")))
    named = re.findall(r"--(\w+)", str(caught.value))
    assert named and set(named) <= set(VlmConfig().flat())


def test_the_fingerprint_knows_layers_and_weights() -> None:
    sizes = dict(model_type="dinov2", hidden_size=24, num_hidden_layers=3, num_attention_heads=2, patch_size=14)
    first = build_tower({**sizes, "image_size": 28}, -1)
    other = build_tower({**sizes, "image_size": 28}, -2)
    other.load_state_dict(first.state_dict())
    assert tower_fingerprint(first) != tower_fingerprint(other)
    again = build_tower({**sizes, "image_size": 28}, -1)
    again.load_state_dict(first.state_dict())
    assert tower_fingerprint(first) == tower_fingerprint(again)
    with torch.no_grad():
        next(again.parameters()).add_(1e-3)
    assert tower_fingerprint(first) != tower_fingerprint(again)


def test_rows_are_those_of_the_pictures(talk) -> None:
    source = ConversationReader(talk[0])
    for index in range(len(source)):
        shown = [[source.picture(row) for row in visual] for visual in source.rows(index)]
        assert shown == source[index].visuals
