"""The entry `src/caption.py`, on an exported model."""

from __future__ import annotations

import shutil

import pytest
from PIL import Image

from bitgen.commands import caption
from bitgen.data.tokenizer import load_tokenizer
from bitgen.export.revisions import export_run
from bitgen.model.causal_lm_bitgen import CHECKSUMS
from bitgen.trained import open_model
from support.runs import written_run
from support.tokenizers import other_tokenizer


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export_run(str(written_run()), str(tmp_path_factory.mktemp("caption") / "model"), False, False, {})


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.effect_noise((50, 40), 90).save(path)
    return path


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        caption.main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    return capsys.readouterr()


def test_each_image_gets_a_caption(exported, photo, capsys):
    caption.main([str(photo), str(photo), "--model", str(exported), "--prompt", "the cat", "--max_new_tokens", "5"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0] == lines[1] and lines[0].startswith(f"{photo}\tthe cat")


def test_an_image_that_cannot_be_read_does_not_cost_the_others(exported, photo, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(photo.read_bytes()[:100])
    printed = refused(capsys, tmp_path / "broken.png", tmp_path / "none.png", photo, "--model", exported)
    assert printed.out.startswith(f"{photo}\t")
    assert f"{tmp_path / 'broken.png'}: " in printed.err and f"{tmp_path / 'none.png'}: " in printed.err


def test_a_run_and_its_checkpoint_write_what_their_export_writes(exported, photo, capsys):
    said = []
    for model in (exported, written_run(), written_run() / "step-00000007"):
        caption.main([str(photo), "--model", str(model), "--max_new_tokens", "5"])
        said.append(capsys.readouterr().out)
    assert len(set(said)) == 1 and said[0].startswith(f"{photo}\t")


def test_a_model_that_never_learned_to_write_is_refused(photo, tmp_path, capsys):
    run = written_run(settings={"text_loss_weight": 0.0})
    for model in (run, export_run(str(run), str(tmp_path / "model"), False, False, {})):
        assert "never learned to write" in refused(capsys, photo, "--model", model).err


def test_a_model_on_features_cannot_look(photo, tmp_path, capsys):
    folder = export_run(str(written_run(features=True)), str(tmp_path / "model"), False, False, {})
    assert "trained on features computed earlier" in refused(capsys, photo, "--model", folder).err


@pytest.mark.parametrize("size", [600, 260], ids=["larger", "smaller"])
def test_an_export_with_another_tokenizer_is_refused(size, exported, photo, tmp_path, capsys):
    folder = shutil.copytree(exported, tmp_path / "model")
    own = len(load_tokenizer(folder))
    other = other_tokenizer(size)
    other.save_pretrained(folder)
    assert "tokenizer.json is not what was exported" in " ".join(refused(capsys, photo, "--model", folder).err.split())
    (folder / CHECKSUMS).unlink()
    assert (len(other) > own) == (size == 600)
    said = refused(capsys, photo, "--model", folder).err
    assert f"has {len(other)} tokens and the model's vocabulary {own}" in " ".join(said.split())


def test_an_export_with_a_table_for_more_tokens_takes_their_tokenizer(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "model")
    exported = open_model(folder)
    model, tokenizer = exported.model, exported.tokenizer
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="tokenizer.json is not what was exported"):
        open_model(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    assert open_model(folder).model.config.vocab_size == len(tokenizer)
