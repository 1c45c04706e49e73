import json

import pytest

from bitgen.data.records import Record
from bitgen.data.text_shards import tokenizer_sha256
from bitgen.data.tokenizer import build_tokenizer, load_tokenizer, train_bpe
from support.data import jpeg, write_images

LINES = [f"A {size} {colour} cat sat there." for size in ("big", "small") for colour in ("red", "black", "blue")]
CAPTIONS = ["a dog runs along the beach", "a dog runs along the street"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "a.train"
    path.write_text("\n\n".join(LINES))
    return path


@pytest.fixture
def captions(tmp_path):
    write_images(tmp_path / "data", [Record("1.jpg", jpeg(0), CAPTIONS)])
    return tmp_path / "data"


def test_text_and_captions_give_the_tokenizer_that_train_bpe_gives(script, text, captions, tmp_path):
    output = tmp_path / "tokenizer"
    script("train_tokenizer")(
        ["--text", str(text), "--captions", str(captions), "--vocab_size", "290", "--output", str(output)]
    )
    tokenizer = load_tokenizer(output)
    expected = train_bpe([*LINES, *CAPTIONS], 290)
    assert tokenizer.get_vocab() == expected.get_vocab()
    assert tokenizer(LINES).input_ids == expected(LINES).input_ids
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<pad>")
    for strange in ("Größe: 5 µm, 猫 \n tab\t", " leading"):
        ids = tokenizer(strange, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == strange
    meta = json.loads((output / "bitgen_tokenizer_training.json").read_text())
    assert (meta["words"], meta["text"], meta["captions"]) == (30 + 6, ["a.train"], ["data"])
    assert meta["sha256"] == tokenizer_sha256(tokenizer)
    # What the training command does with --tokenizer DIR.
    assert build_tokenizer(str(output), None, 290, tmp_path / "run").get_vocab() == expected.get_vocab()


def test_captions_alone(script, captions, tmp_path):
    script("train_tokenizer")(["--captions", str(captions), "--vocab_size", "265", "--output", str(tmp_path / "t")])
    assert load_tokenizer(tmp_path / "t").get_vocab() == train_bpe(CAPTIONS, 265).get_vocab()


def test_mistakes(script, text, tmp_path, capsys, caplog):
    train = script("train_tokenizer")
    with pytest.raises(SystemExit):
        train(["--output", str(tmp_path / "t")])
    assert "give --text, --captions, or both" in capsys.readouterr().err
    with pytest.raises(ValueError, match="vocab_size is 100; a byte-level tokenizer needs at least 259"):
        train(["--text", str(text), "--vocab_size", "100", "--output", str(tmp_path / "t")])
    with pytest.raises(ValueError, match="nowhere does not exist"):
        train(["--captions", str(tmp_path / "nowhere"), "--output", str(tmp_path / "t")])
    assert not (tmp_path / "t").exists()
    train(["--text", str(text), "--output", str(tmp_path / "t")])
    assert "no other pair occurs twice" in caplog.text
    with pytest.raises(ValueError, match="holds a tokenizer trained by this script already"):
        train(["--text", str(text), "--output", str(tmp_path / "t")])
    train(["--text", str(text), "--output", str(tmp_path / "t"), "--overwrite", "True"])
