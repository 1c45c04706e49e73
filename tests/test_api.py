"""BitGen in a program: the ten lines of the docstring, on a tiny model."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import bitgen
import bitgen.api
from bitgen.config import ConfigError
from bitgen.export.revisions import export_run
from bitgen.training.trainer import Trainer
from support.runs import written_run

TINY = """\
vision: {vision_encoder: random, vision_hidden_size: 32, vision_num_layers: 1, vision_num_heads: 2,
         vision_patch_size: 14, image_size: 28}
lora: {lora_rank: 2, lora_warmup_steps: 1}
model: {embed_dim: 16, vision_embed_dim: 16, compressor_dim: 24, num_layers: 1, num_heads: 2, ffn_dim: 32,
        vocab_size: 300, max_seq_len: 24}
memory: {memory_dim: 16, memory_size: 4}
objective: {queue_size: 16, temperature: 0.07}
training: {batch_size: 4, grad_accum_steps: 1, warmup_steps: 1, max_steps: 9, precision: fp32, device: cpu}
data: {train_data: scenes, tokenizer: train, scenes_train: 8, scenes_val: 4, num_workers: 0}
output: {progress: false}
"""


@pytest.fixture
def pictures(tmp_path: Path) -> list:
    """A file, its encoded bytes and another image as PIL makes it."""
    path = tmp_path / "one.png"
    Image.effect_noise((50, 40), 90).save(path)
    return [path, path.read_bytes(), Image.new("RGB", (40, 40), (200, 30, 30))]


@pytest.fixture
def model() -> bitgen.Model:
    return bitgen.load(written_run(), device="cpu")


def test_a_run_is_trained_resumed_and_loaded(tmp_path: Path, caplog) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    folders = {"output_dir": tmp_path / "run", "log_dir": tmp_path / "logs"}
    before = list(sys.argv)
    run = bitgen.train(tmp_path / "tiny.yaml", max_steps=2, val_data=None, **folders)
    assert run == tmp_path / "run" and (run / "step-00000002").is_dir()
    with pytest.raises(ConfigError, match="--resume auto"):
        bitgen.train(tmp_path / "tiny.yaml", max_steps=3, **folders)
    bitgen.train(str(tmp_path / "tiny.yaml"), max_steps=3, resume="auto", **folders)
    assert (run / "step-00000003").is_dir() and sys.argv == before
    assert bitgen.load(run, device="cpu").trained.folder == (run / "step-00000003").resolve()
    with pytest.raises(ConfigError, match="max_stepps.*Did you mean --max_steps"):
        bitgen.train(tmp_path / "tiny.yaml", max_stepps=3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_was_told_to_stop_says_so_and_goes_on_later(tmp_path: Path, monkeypatch, number) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    settings = {"output_dir": tmp_path / "run", "log_dir": tmp_path / "logs", "max_steps": 3, "val_data": None}
    step = Trainer._step

    def stopped(self: Trainer, *arguments) -> bool:
        os.kill(os.getpid(), number)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", stopped)
    with pytest.raises(bitgen.RunStopped, match=f"stopped by {number.name}.*resume=.auto") as told:
        bitgen.train(tmp_path / "tiny.yaml", **settings)
    assert told.value.folder == tmp_path / "run" and told.value.signal == number
    assert (tmp_path / "run" / "step-00000001").is_dir()
    assert isinstance(told.value, KeyboardInterrupt), "no failure, which a loop over settings would pass over"
    monkeypatch.undo()
    assert bitgen.train(tmp_path / "tiny.yaml", resume="auto", **settings) == tmp_path / "run"


def test_a_run_that_cannot_go_on_is_an_exception(tmp_path: Path) -> None:
    from bitgen.run import RunFailed

    (tmp_path / "tiny.yaml").write_text(TINY)
    folders = {"output_dir": tmp_path / "run", "log_dir": tmp_path / "logs"}
    with pytest.raises(RunFailed, match="2 steps in a row"):
        bitgen.train(tmp_path / "tiny.yaml", max_nonfinite_steps=2, learning_rate=1e30, warmup_steps=0, **folders)


def test_ranking_and_searching_are_the_cosines_of_the_features(model, pictures) -> None:
    captions = ["the cat", "a red dog", "blue mat"]
    trained = model.trained
    with torch.no_grad():
        pixels = trained.processor.images([Path(pictures[0]).read_bytes(), *pictures[1:]])
        images = trained.model.encode_image(pixels).image_features
        texts = trained.model.encode_text(*trained.processor.texts(captions).values())
    expected = images @ texts.T
    ranked = model.rank(pictures, captions)
    assert len(ranked) == 3 and ranked[0] == ranked[1] != ranked[2]
    for row, found in enumerate(ranked):
        assert sorted((one.score for one in found), reverse=True) == [one.score for one in found]
        assert all(one.item == captions[one.index] for one in found)
        assert all(one.score == pytest.approx(expected[row, one.index].item(), abs=1e-5) for one in found)
    best = model.search("a red dog", pictures)
    assert [one.index for one in best] == expected[:, 1].argsort(descending=True, stable=True).tolist()
    assert best[0].item is pictures[best[0].index]


def test_matching_is_a_probability_of_image_and_text_together(model, pictures) -> None:
    found = model.match(pictures[2], "a red dog")
    assert (
        0 < found < 1
        and found != model.match(pictures[2], "blue mat")
        and found != model.match(pictures[0], "a red dog")
    )


def test_captions_are_those_of_the_export(model, pictures, tmp_path) -> None:
    exported = bitgen.load(export_run(str(written_run()), str(tmp_path / "m"), False, False, {}), device="cpu")
    written = model.caption(pictures[0], prompt="the cat", max_new_tokens=5)
    assert written.startswith("the cat") and written == exported.caption(pictures[1], "the cat", max_new_tokens=5)


def test_what_was_never_learned_is_refused(pictures) -> None:
    untrained = dict(text_loss_weight=0.0, itm_weight=0.0, contrastive_weight=0.0)
    model = bitgen.load(written_run(settings=untrained), device="cpu")
    for call, reason in (
        (lambda: model.caption(pictures[0]), "never learned to write"),
        (lambda: model.match(pictures[0], "a"), "matching head is untrained"),
        (lambda: model.search("a", pictures), "never brought together"),
        (lambda: model.rank(pictures, ["a"]), "never brought together"),
    ):
        with pytest.raises(ConfigError, match=reason):
            call()


def test_a_memory_recalls_what_it_was_taught(model, pictures, tmp_path) -> None:
    memory = model.memory(slots=8)
    memory.write([pictures[0], pictures[2]], ["this is Rex", "a red square"])
    assert memory.recall(pictures[1])[0].text == "this is Rex"
    memory.save(tmp_path / "pets.memory")
    assert model.memory(tmp_path / "pets.memory").recall(pictures[2])[0].text == "a red square"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, path: model.search("a", []), "no images"),
        (lambda model, path: model.search("a", str(path)), r"images is a list: write \[image\]"),
        (lambda model, path: model.rank([path], "a"), r"captions is a list: write \[caption\]"),
        (lambda model, path: model.rank([path], [" "]), "text 0 is empty"),
        (lambda model, path: model.caption("nowhere.png"), "nowhere.png cannot be read"),
        (lambda model, path: bitgen.load(path), "this is a file"),
    ],
)
def test_mistakes_are_named(model, pictures, call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(model, pictures[0])


def test_features_computed_earlier_take_the_place_of_images() -> None:
    model = bitgen.load(written_run(features=True), device="cpu")
    features = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(0))
    assert {found.index for found in model.search("the cat", features)} == {0, 1}
    assert isinstance(model.caption(features[0], max_new_tokens=3), str) and 0 < model.match(features[1], "a dog") < 1


def test_the_package_says_what_it_has() -> None:
    assert {"train", "load", "Model", "__version__"} <= set(dir(bitgen))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = bitgen.trian


def test_the_lines_of_the_docstring_run_as_they_stand(tmp_path, monkeypatch, capsys) -> None:
    """Only the files are others: a smaller configuration, and two pictures."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "scenes").mkdir()
    folders = "{progress: false, output_dir: run, log_dir: logs}"
    (tmp_path / "configs" / "quickstart.yaml").write_text(
        TINY.replace("{progress: false}", folders)
        .replace("max_steps: 9", "max_steps: 2")
        .replace("{queue", "{text_loss_weight: 1, queue")
    )
    for name in ("1.png", "2.png"):
        Image.effect_noise((50, 40), 90).save(tmp_path / "scenes" / name)
    monkeypatch.chdir(tmp_path)
    lines = [line[4:] for line in bitgen.api.__doc__.splitlines() if line.startswith("    ")]
    exec("\n".join(lines), {})
    best, ranked, recalled, _caption = capsys.readouterr().out.splitlines()[-4:]
    assert best.startswith("Found(item='") and ranked.startswith("[Found(item='")
    assert recalled == "this is Rex"
