"""Captions of other people: what a cell means, what a text becomes, which columns are taken, which types refused."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest

from bitgen.data.captions import LONGEST, captions_of, numbered_columns, tidy
from bitgen.data.column_types import holds_bytes, holds_texts


@pytest.mark.parametrize(
    ("text", "tidied"),
    [
        (" a dog \n", "a dog"),
        ("a dog\nruns\r\n\x1b[2J fast\u2028away", "a dog runs [2J fast away"),
        ("a  dog\u00a0runs \u3000 fast", "a dog runs fast"),  # as many words as its tokens tell
        ("so cute \ud83d", "so cute \ufffd"),
        ("so cute \ud83d\ude00", "so cute \U0001f600"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("word " * 28_000, ("word " * 28_000)[:LONGEST].strip()),
        (" \x00\n ", ""),
    ],
)
def test_a_caption_becomes_one_line_of_valid_unicode(text: str, tidied: str) -> None:
    assert tidy(text) == tidied
    tidied.encode()


@pytest.mark.parametrize(
    ("cell", "captions"),
    [
        (None, [""]),
        (math.nan, [""]),
        ("a dog", ["a dog"]),
        (["a dog", None, math.nan, ""], ["a dog", "", "", ""]),
        ([], []),
        ({"en": "a dog", "de": "ein Hund", "pt-BR": None}, ["a dog", "ein Hund", ""]),
    ],
)
def test_what_a_cell_holds(cell: object, captions: list[str]) -> None:
    assert captions_of(cell, "caption", "row 3") == captions


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        (5, "a number"),
        (True, "bool"),
        (b"a dog", "bytes"),
        ({"raw": "a dog"}, "an object"),
        ({}, "an object"),
        ({"en": 1}, "a number"),
        ([["a dog"]], "a list with a list"),
        (["a dog", 5], "a list with a number"),
        (math.inf, "a number"),
    ],
)
def test_a_cell_of_another_kind_is_named(cell: object, kind: str) -> None:
    with pytest.raises(ValueError, match=rf"^row 3: cap\\x1btion holds .*{kind}.*neither a string nor a list of str"):
        captions_of(cell, "cap\x1btion", "row 3")


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (["image", "caption_1", "caption_0", "caption_10", "caption_2"], "caption_0 caption_1 caption_2 caption_10"),
        (["caption1", "caption2", "id"], "caption1 caption2"),
        (["caption_0", "image"], ""),
        (["caption_0", "text_0"], ""),
        (["width_0", "width_1"], ""),
    ],
)
def test_numbered_columns_are_taken_together(columns: list[str], found: str) -> None:
    assert numbered_columns(columns) == found.split()


LANGUAGES = pa.struct([("en", pa.string()), ("de", pa.string())])


@pytest.mark.parametrize(
    ("kind", "texts", "images"),
    [
        (pa.string(), True, False),
        (pa.large_string(), True, False),
        (pa.list_(pa.string()), True, False),
        (pa.dictionary(pa.int32(), pa.string()), True, False),
        (LANGUAGES, True, False),
        (pa.struct([("raw", pa.string()), ("en", pa.string())]), False, False),
        (pa.struct([("en", pa.int64())]), False, False),
        (pa.list_(LANGUAGES), False, False),
        (pa.int64(), False, False),
        (pa.float32(), False, False),
        (pa.binary(), False, True),
        (pa.large_binary(), False, True),
        (pa.struct([("bytes", pa.binary()), ("path", pa.string())]), False, True),
        (pa.struct([("path", pa.string())]), False, False),
        (pa.list_(pa.binary()), False, False),
    ],
)
def test_types_of_columns(kind: pa.DataType, texts: bool, images: bool) -> None:
    assert (holds_texts(kind), holds_bytes(kind)) == (texts, images)
