import importlib
import json
import logging

import numpy as np
import pytest

from bitgen.data.text_blocks import TextBlocks
from bitgen.data.text_shards import TEXT_SIDECAR, TextShard, read_text_info
from bitgen.data.tokenizer import load_tokenizer
from support.tokenizers import prose, tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(str(folder))
    return folder


@pytest.fixture
def texts(tmp_path):
    """Three files: one very long line, a conversation a line, articles."""
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "long.train").write_text(prose(1, 400), encoding="utf-8")
    talk = ["*MOT: where is the cat?", "*CHI: xxx there.", "", "*MOT: good girl.", "*CHI: [giggles] yes it is."]
    (folder / "talk.train").write_text("\n".join(talk) + "\n", encoding="utf-8")
    articles = " ".join(f"= = = Town {n} = = = Town {n} is a town of {prose(n, 2)}" for n in range(30))
    (folder / "wiki.txt").write_text(f"of the river. {articles} {articles[:60]}", encoding="utf-8")
    (folder / "notes.md").write_text("not taken")
    return folder


def prepare(script, texts, tokenizer_folder, output, *flags):
    script("babylm_text")(["--text", str(texts), "--tokenizer", str(tokenizer_folder), "--output", str(output), *flags])
    return read_text_info(output)


def decoded(folder, tokenizer_folder, name):
    info, tokenizer = read_text_info(folder), load_tokenizer(tokenizer_folder)
    source = next(source for source in info.sources if source.name == name)
    shard = TextShard(folder, source, info.dtype)
    ends = np.cumsum(shard.lengths)
    documents = [shard.tokens[end - length : end] for length, end in zip(shard.lengths, ends, strict=True)]
    assert all((ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id) for ids in documents)
    return [tokenizer.decode(ids[1:-1]) for ids in documents]


def source_words(texts) -> int:
    files = [path for path in texts.iterdir() if path.suffix != ".md"]
    return sum(len(path.read_text(encoding="utf-8").split()) for path in files)


def test_every_word_of_the_files_is_kept_or_accounted_for(script, texts, tokenizer_folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    output, held_out = tmp_path / "corpus", tmp_path / "held_out"
    info = prepare(
        script, texts, tokenizer_folder, output, "--max_document_words", "200",
        "--val_output", str(held_out), "--val_fraction", "0.2",
    )  # fmt: skip
    val = read_text_info(held_out)
    dropped = sum(count["words"] for count in info.dropped.values())
    assert info.words + val.words + dropped == source_words(texts)
    assert info.dropped == val.dropped
    assert (info.preparation["split"], val.preparation["split"]) == ("train", "val")
    assert 0 < val.documents < info.documents
    kept = {text for name in ("long", "wiki") for text in decoded(output, tokenizer_folder, name)}
    assert not kept & {text for source in val.sources for text in decoded(held_out, tokenizer_folder, source.name)}
    assert f"{info.documents} documents, {info.words} words, {info.tokens} tokens" in caplog.text
    blocks = TextBlocks(output, load_tokenizer(tokenizer_folder), 32)
    assert sum(blocks[index]["words"] for index in range(len(blocks))) == info.words


def test_long_lines_are_cut_at_ends_of_sentences(script, texts, tokenizer_folder, tmp_path):
    prepare(script, texts, tokenizer_folder, tmp_path / "corpus", "--max_document_words", "150")
    documents = decoded(tmp_path / "corpus", tokenizer_folder, "long")
    assert " ".join(documents) == (texts / "long.train").read_text()
    assert all(text[0].isupper() and text.endswith(".") for text in documents)
    lengths = [len(text.split()) for text in documents]
    assert max(lengths) <= 150 and min(lengths) >= 75


def test_a_line_without_sentences_is_cut_all_the_same(script, tokenizer_folder, tmp_path):
    (tmp_path / "a.txt").write_text(" ".join(f"word{n}" for n in range(1000)))
    info = prepare(script, tmp_path / "a.txt", tokenizer_folder, tmp_path / "corpus", "--max_document_words", "150")
    assert (info.documents, info.words) == (7, 1000)
    assert " ".join(decoded(tmp_path / "corpus", tokenizer_folder, "a")) == (tmp_path / "a.txt").read_text()


def test_articles_begin_at_headings_which_are_left_out(script, texts, tokenizer_folder, tmp_path):
    info = prepare(script, texts, tokenizer_folder, tmp_path / "corpus")
    documents = decoded(tmp_path / "corpus", tokenizer_folder, "wiki")
    assert documents[0] == "of the river."
    assert [text.split(" is ")[0] for text in documents[1:31]] == [f"Town {n}" for n in range(30)]
    assert not any("=" in text for text in documents)
    assert [source.name for source in info.sources] == ["long", "talk", "wiki"]


def test_the_words_of_a_heading_count_once_however_often_its_article_is_cut(script, tokenizer_folder, tmp_path):
    (tmp_path / "wiki.txt").write_text(f"= = = A long title = = = {prose(3, 60)}")
    info = prepare(script, tmp_path / "wiki.txt", tokenizer_folder, tmp_path / "corpus", "--max_document_words", "100")
    assert info.documents > 3 and not info.dropped
    assert info.words == len((tmp_path / "wiki.txt").read_text().split())


def test_a_heading_cut_in_half_or_missing_moves_nothing_else(script, tokenizer_folder, tmp_path):
    body = "Pailly is a town where the cat sat on the mat and saw the big red dog run far away."
    other = body.replace("Pailly", "Vich")
    text = f"Pailly = = = {body} = = = Vich = = = {other} = = = {body[7:]} = = = Muff = = = Muff is a town."
    (tmp_path / "wiki.txt").write_text(text)
    prepare(script, tmp_path / "wiki.txt", tokenizer_folder, tmp_path / "corpus")
    assert decoded(tmp_path / "corpus", tokenizer_folder, "wiki") == [body, other, body[7:], "Muff is a town."]


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ("keep", ["*MOT: where is the cat? *CHI: xxx there.", "*MOT: good girl. *CHI: [giggles] yes it is."]),
        ("strip", ["where is the cat? xxx there.", "good girl. [giggles] yes it is."]),
    ],
)
def test_speaker_marks(script, texts, tokenizer_folder, tmp_path, marks, expected):
    info = prepare(script, texts, tokenizer_folder, tmp_path / "corpus", "--speaker_marks", marks)
    assert decoded(tmp_path / "corpus", tokenizer_folder, "talk") == expected
    words = next(source.words for source in info.sources if source.name == "talk")
    assert words == len((texts / "talk.train").read_text().split()), "words are those of the source text"


def test_letters_are_speakers_only_where_two_of_them_speak(scripts_on_path):
    from _common.documents import clean

    assert clean("A: Yes. B: No.".split(), keep_speakers=False) == "Yes. No."
    assert clean("*A: Yes. *CHI: No.".split(), keep_speakers=False) == "Yes. No."
    assert clean("Vitamin A: good for the eyes.".split(), keep_speakers=False) == "Vitamin A: good for the eyes."


def test_cleaning(scripts_on_path):
    from _common.documents import clean

    dirty = "Tom &amp; \x7fJerry\u200b &lt;br&gt; 119||13||9 (\ufffd\ufffd) don\ufffdt \u00ad 3 &lt; 4 été"
    assert clean(dirty.split(), keep_speakers=True) == "Tom & Jerry dont 3 < 4 été"


def test_what_is_dropped_and_why(script, tokenizer_folder, tmp_path, caplog):
    same = "The cat sat on the mat and saw the dog."
    (tmp_path / "a.txt").write_text(f"{same}\n\nHm.\n\n{same.upper()}\n\n12 13 14 15 16\n\nThe dog ran far away.\n")
    info = prepare(script, tmp_path / "a.txt", tokenizer_folder, tmp_path / "corpus")
    assert (info.documents, info.words) == (2, 15)
    babylm_text = importlib.import_module("babylm_text")
    assert info.dropped == {
        babylm_text.SHORT: {"documents": 1, "words": 1},
        babylm_text.DUPLICATE: {"documents": 1, "words": 10},
        babylm_text.NO_LANGUAGE: {"documents": 1, "words": 5},
    }
    assert "a.txt line 5" in caplog.text


def test_the_same_input_gives_the_same_bytes(script, texts, tokenizer_folder, tmp_path):
    for name in ("one", "two"):
        prepare(
            script, texts, tokenizer_folder, tmp_path / name / "corpus",
            "--val_output", str(tmp_path / name / "val"), "--val_fraction", "0.3",
        )  # fmt: skip
    one = {path.relative_to(tmp_path / "one"): path for path in (tmp_path / "one").rglob("*.*")}
    assert len(one) >= 6
    for name, path in one.items():
        assert path.read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_limit_and_overwrite(script, texts, tokenizer_folder, tmp_path):
    output = tmp_path / "corpus"
    info = prepare(script, texts, tokenizer_folder, output, "--limit", "1")
    assert info.documents == 3 and info.preparation["limit"] == 1
    with pytest.raises(ValueError, match="holds a text corpus already; pass --overwrite True"):
        prepare(script, texts, tokenizer_folder, output)
    assert prepare(script, texts, tokenizer_folder, output, "--overwrite", "True").documents > 3
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(ValueError, match="not a BitGen text corpus"):
        prepare(script, texts, tokenizer_folder, tmp_path / "photos", "--overwrite", "True")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "--text .*bad.txt is empty: no word in 0 bytes"),
        (b" \n \n", "is empty"),
        (b"\x7fELF\0\0\0\1", "bad.txt is a binary file, not text"),
        (b"\x1f\x8b\x08 gz", "compressed, not text"),
        ("caf\xe9 au lait".encode("latin-1"), "not UTF-8 text .*perhaps it is Latin-1; convert it with `iconv"),
        ("hello".encode("utf-16"), "UTF-16"),
    ],
)
def test_bad_files_stop_before_anything_is_written(script, texts, tokenizer_folder, tmp_path, content, message):
    (texts / "bad.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        prepare(script, texts, tokenizer_folder, tmp_path / "corpus")
    with pytest.raises(ValueError, match=message):
        script("train_tokenizer")(["--text", str(texts), "--output", str(tmp_path / "new")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts"]


def test_other_mistakes(script, texts, tokenizer_folder, tmp_path, capsys):
    with pytest.raises(ValueError, match="tokenizer folder .*nowhere does not exist"):
        prepare(script, texts, tmp_path / "nowhere", tmp_path / "corpus")
    with pytest.raises(ValueError, match="--text .*missing does not exist"):
        prepare(script, tmp_path / "missing", tokenizer_folder, tmp_path / "corpus")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.md").touch()
    with pytest.raises(ValueError, match="holds no .train or .txt file"):
        prepare(script, tmp_path / "other", tokenizer_folder, tmp_path / "corpus")
    (texts / "wiki.train").write_text("The same name.")
    with pytest.raises(ValueError, match="have one name"):
        prepare(script, texts, tokenizer_folder, tmp_path / "corpus")
    for flags in (["--val_fraction", "0.1"], ["--val_output", str(tmp_path / "val")]):
        with pytest.raises(SystemExit):
            prepare(script, texts, tokenizer_folder, tmp_path / "corpus", *flags)
        assert "belong together" in capsys.readouterr().err
    # One would be put where the other then goes.
    (tmp_path / "link").symlink_to(tmp_path)
    for output, held_out in (("a", "a"), ("a", "a/val"), ("a/train", "a"), ("a", "link/a/val")):
        flags = ["--val_fraction", "0.1", "--val_output", str(tmp_path / held_out)]
        with pytest.raises(SystemExit):
            prepare(script, texts, tokenizer_folder, tmp_path / output, *flags)
        assert "are the same folder, or one is inside the other" in capsys.readouterr().err
        assert not (tmp_path / "a").exists()


def test_nothing_is_written_when_no_document_is_left(script, tokenizer_folder, tmp_path):
    (tmp_path / "a.txt").write_text("Hm.")
    with pytest.raises(ValueError, match="no document is left"):
        prepare(script, tmp_path / "a.txt", tokenizer_folder, tmp_path / "corpus")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.realdata
def test_the_real_corpus(script, shared_data, tmp_path):
    texts = shared_data / "babylm_text"
    script("train_tokenizer")(
        ["--text", str(texts / "switchboard.train"), "--output", str(tmp_path / "bpe"), "--vocab_size", "2000"]
    )
    info = prepare(script, texts, tmp_path / "bpe", tmp_path / "corpus", "--limit", "40")
    assert [source.name for source in info.sources] == [
        "bnc_spoken", "childes", "gutenberg", "mixed", "open_subtitles", "simple_wiki", "switchboard",
    ]  # fmt: skip
    assert all(source.documents > 20 and source.tokens > source.words * 0.9 for source in info.sources)
    assert json.loads((tmp_path / "corpus" / TEXT_SIDECAR).read_text())["preparation"]["limit"] == 40
    blocks = TextBlocks(tmp_path / "corpus", load_tokenizer(tmp_path / "bpe"), 512)
    assert sum(blocks[index]["words"] for index in range(len(blocks))) == info.words


# ---- scripts that are not Latin ----

CHINESE, JAPANESE, PERSIAN = "我喜欢读书。", "ねこが好きです。", "می\u200cخواهم کتاب بخوانم"
BURMESE, HINDI = "ကျွန်တော် စာဖတ်ရတာ ကြိုက်တယ်", "मुझे किताबें पढ़ना पसंद है"


@pytest.mark.parametrize("line", [CHINESE, JAPANESE, PERSIAN, BURMESE, HINDI, "ผมชอบอ่านหนังสือ"])
def test_a_line_of_any_script_is_kept_as_it_is(script, tokenizer_folder, tmp_path, line):
    (tmp_path / "a.txt").write_text(line + "\n", encoding="utf-8")
    info = prepare(script, tmp_path / "a.txt", tokenizer_folder, tmp_path / "out")
    assert (info.documents, info.words) == (1, len(line.split()))
    assert decoded(tmp_path / "out", tokenizer_folder, "a") == [line]


@pytest.mark.parametrize(
    ("text", "words", "letters"),
    [
        ("the cat sat", 3, 9),
        ("caf\u00e9 42 --", 3, 4),
        ("cafe\u0301", 1, 5),
        ("ok 我喜欢", 3, 5),
        ("\u200b 👍🏽 !!", 3, 0),
        ("မြန်မာ", 6, 6),
    ],
)
def test_words_and_letters(scripts_on_path, text, words, letters):
    documents = importlib.import_module("_common.documents")
    assert (documents.least_words(text), documents.count_letters(text)) == (words, letters)


def test_what_is_too_short_in_any_script_is_counted(script, tokenizer_folder, tmp_path, caplog):
    (tmp_path / "a.txt").write_text("读书\n\nthe cat\n\nthe cat sat\n", encoding="utf-8")
    info = prepare(script, tmp_path / "a.txt", tokenizer_folder, tmp_path / "out")
    assert info.dropped == {
        "document of fewer words than --min_document_words once cleaned": {"documents": 2, "words": 3}
    }
    assert "2 documents, 3 words" in caplog.text
