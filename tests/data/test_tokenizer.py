import json

import pytest

from bitgen.data.tokenizer import build_tokenizer, load_tokenizer, train_bpe
from bitgen.machine.hub import hub_answers
from support.warm import run_warm

CAPTIONS = [
    f"a {size} {colour} {shape} above it"
    for size in ("big", "small")
    for colour in ("red", "blue")
    for shape in ("circle", "square", "star")
]


def test_trained_tokens_and_round_trip():
    tokenizer = train_bpe(CAPTIONS, 300)
    assert len(tokenizer) <= 300
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    for text in (*CAPTIONS, "Größe: 5 µm, 猫 \n tab\t🙂", " leading"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert len(tokenizer("a big red circle", add_special_tokens=False).input_ids) < len("a big red circle")


def test_training_is_the_same_in_another_process():
    script = (
        "import sys, json\nfrom bitgen.data.tokenizer import train_bpe\n"
        "print(train_bpe(json.loads(sys.argv[1]), 290).backend_tokenizer.to_str())"
    )
    out = run_warm(["-c", script, json.dumps(CAPTIONS)])  # whose sets have another order
    assert json.loads(out.stdout) == json.loads(train_bpe(CAPTIONS, 290).backend_tokenizer.to_str())


def test_train_keeps_and_reuses(tmp_path, caplog):
    folder = tmp_path / "run" / "tokenizer"
    first = build_tokenizer("train", CAPTIONS, 290, folder)
    second = build_tokenizer("train", None, 290, folder)
    assert second.get_vocab() == first.get_vocab()
    assert (second.bos_token_id, second.eos_token_id, second.pad_token_id) == (0, 1, 2)
    assert second(CAPTIONS[0]).input_ids == first(CAPTIONS[0]).input_ids
    build_tokenizer("train", CAPTIONS, 290, folder)
    assert "other captions" not in caplog.text
    third = build_tokenizer("train", ["something else entirely"], 290, folder)
    assert "other captions" in caplog.text
    assert third.get_vocab() == first.get_vocab()
    with pytest.raises(ValueError, match="vocab_size 290, not 280"):
        build_tokenizer("train", CAPTIONS, 280, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["tokenizer"]


def test_train_needs_captions(tmp_path):
    with pytest.raises(ValueError, match="needs captions"):
        build_tokenizer("train", None, 290, tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="has none"):
        build_tokenizer("train", [], 290, tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="at least 259"):
        build_tokenizer("train", CAPTIONS, 200, None)


def gpt2_files(folder):
    """The smallest files of GPT-2's form: bytes of `ab c`, one merge, the special token."""
    folder.mkdir()
    vocab = {"a": 0, "b": 1, "Ġ": 2, "c": 3, "ab": 4, "<|endoftext|>": 5}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\na b\n", encoding="utf-8")
    return folder


def test_folder_with_gpt2_files_loads(tmp_path):
    tokenizer = build_tokenizer(str(gpt2_files(tmp_path / "gpt2")), None, 6, tmp_path / "run" / "tokenizer")
    assert tokenizer("ab c").input_ids == [4, 2, 3]
    assert tokenizer.decode([4, 2, 3]) == "ab c"
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 5
    kept = load_tokenizer(tmp_path / "run" / "tokenizer")
    assert kept("ab c").input_ids == [4, 2, 3]
    assert kept.bos_token_id == kept.eos_token_id == kept.pad_token_id == 5


def test_a_loaded_one_replaces_the_kept_one_but_train_does_not(tmp_path):
    folder = tmp_path / "run" / "tokenizer"
    build_tokenizer("train", CAPTIONS, 290, folder)
    build_tokenizer(str(gpt2_files(tmp_path / "gpt2")), None, 6, folder)
    assert len(load_tokenizer(folder)) == 6
    with pytest.raises(ValueError, match="earlier run.*another --output_dir"):
        build_tokenizer("train", CAPTIONS, 290, folder)


def test_mistakes_are_named(tmp_path, monkeypatch):
    folder = gpt2_files(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="6 tokens but vocab_size is 5.*--vocab_size 6"):
        build_tokenizer(str(folder), None, 5, None)
    (folder / "merges.txt").unlink()
    with pytest.raises(ValueError, match=r"no merges.txt"):
        load_tokenizer(folder)
    (folder / "vocab.json").write_text("{")
    (folder / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match="damaged"):
        load_tokenizer(folder)
    with pytest.raises(ValueError, match="does not exist"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"neither tokenizer.json nor vocab.json"):
        load_tokenizer(tmp_path / "empty")
    monkeypatch.setattr("bitgen.data.tokenizer.hub_answers", lambda: False)
    with pytest.raises(ValueError, match="--tokenizer FOLDER, or use --tokenizer train"):
        load_tokenizer("bitgen-no-such/tokenizer")


@pytest.mark.realdata
def test_gpt2_itself(shared_data):
    tokenizer = build_tokenizer(str(shared_data / "gpt2_tokenizer"), None, 50257, None)
    assert len(tokenizer) == 50257
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 50256
    # Known ids of GPT-2: "Hello", " world".
    assert tokenizer("Hello world").input_ids == [15496, 995]
    lines = (shared_data / "flickr8k" / "captions.txt").read_text(encoding="utf-8").splitlines()[1:500]
    for line in (*lines, "naïve 猫 🙂  two  spaces"):
        ids = tokenizer(line, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == line


@pytest.mark.parametrize(("proxies", "answers"), [({"no": "localhost"}, False), ({"https": "http://proxy"}, True)])
def test_a_hub_can_be_there_behind_a_proxy_alone(monkeypatch, proxies, answers) -> None:
    def offline(*_, **__):
        raise OSError

    monkeypatch.setattr("bitgen.machine.hub.getproxies", lambda: proxies)
    monkeypatch.setattr("bitgen.machine.hub.socket.create_connection", offline)
    assert hub_answers() == answers
