"""Text files to documents: finding the files, splitting very long lines sensibly, cleaning what is not language."""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from _common.reading import need_file, need_folder, read_lines
from bitgen.data.captions import valid_unicode
from bitgen.guards.printable import printable

TEXT_SUFFIXES = (".train", ".txt")

_SPAN_WORDS = 100
_TITLE_WORDS = 15
_MARK = ["=", "=", "="]
_SENTENCE_END = re.compile(r"""[.!?…]["'”’)\]]*$""")
_SENTENCE_START = re.compile(r"""["'“‘(\[\-–—*]*[A-Z0-9*]|["“‘\[-]""")
_ABBREVIATION = re.compile(r"[(\[\"'“‘]*(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Prof|Rev|Gen|Col|Capt|Lt|Sgt|Hon|Jr|Sr|vs|No|Vol)\.")
_CHILDES_SPEAKER = re.compile(r"\*[A-Z0-9]{1,4}:")
_LETTER_SPEAKERS = ("A:", "B:")
# What neither shows nor says anything: control characters, soft hyphens, marks of direction, byte-order marks.
# Not the joiners \u200c and \u200d: they are letters' business in Persian and Hindi, and hold emoji together.
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff]")
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,80}>")
_BROKEN = "\N{REPLACEMENT CHARACTER}"
_ASCII_LETTER = re.compile("[A-Za-z]")


class Document(NamedTuple):
    """Cleaned text on one line, the words of the source text it was made from, and the file and line of its start."""

    text: str
    words: int
    where: str


def text_files(paths: Iterable[Path], flag: str) -> list[Path]:
    """The files that ``paths`` name, sorted by name; of a folder, its ``.train`` and ``.txt`` files.

    Raises ``ValueError`` for a path that is missing, a folder without such files, or two files of one name, whose
    counts could not be told apart.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(need_file(path, flag))
            continue
        found = [entry for entry in need_folder(path, flag).iterdir() if entry.suffix in TEXT_SUFFIXES]
        if not found:
            raise ValueError(f"{flag} {path} holds no {' or '.join(TEXT_SUFFIXES)} file")
        files += found
    for path in files:
        if valid_unicode(path.name) != path.name:
            raise ValueError(f"{flag} {printable(path)}: the name of this file is not valid Unicode; rename it")
    files.sort(key=lambda path: (path.stem, str(path)))
    for first, second in zip(files, files[1:], strict=False):
        if first.stem == second.stem:
            raise ValueError(f"{flag} {first} and {second} have one name; rename one: counts go by name")
    return files


def count_words(path: Path, flag: str) -> int:
    """Whitespace words of a text file; ``ValueError`` for one that is empty, binary, or in another encoding."""
    with open(path, "rb") as file:
        start = file.read(2**16)
    if b"\0" in start and start[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{flag} {path} is a binary file, not text (it has zero bytes); unpack it, or leave it out")
    if start[:2] == b"\x1f\x8b":
        raise ValueError(f"{flag} {path} is compressed, not text; unpack it with `gunzip`")
    words = sum(len(line.split()) for _, line in read_lines(path, flag))
    if not words:
        raise ValueError(
            f"{flag} {path} is empty: no word in {path.stat().st_size} bytes; leave it out, or get it again"
        )
    return words


# Thai, Lao, Tibetan, Burmese, Khmer, Japanese and Chinese put no spaces between words.
_UNSPACED = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u1a20-\u1aaf\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9ff"
    "\uaa60-\uaa7f\uf900-\ufaff\U00020000-\U0003ffff]"
)


def least_words(text: str) -> int:
    """How many words a text has at least: those between spaces, or a character each of scripts without spaces."""
    return max(len(text.split()), 0 if text.isascii() else len(_UNSPACED.findall(text)))


def count_letters(text: str) -> int:
    """Letters, and the marks that belong to them: vowels and tones in the scripts of India and of South-East Asia."""
    if text.isascii():
        return sum(map(str.isalpha, text))
    return sum(unicodedata.category(character)[0] in "LM" for character in text)


def read_documents(path: Path, flag: str, keep_speakers: bool, max_words: int) -> Iterator[Document]:
    """The documents of a text file. Their words sum to those of the file.

    A document ends at a blank line, at a heading ``= = = Title = = =`` (which is left out: encyclopaedias repeat it in
    the first sentence, others write file names), and on both sides of a line of more than 100 words, which is a
    span of its own; shorter lines are utterances of one conversation and go together. What is longer than ``max_words``
    is cut at an end of a sentence into parts of about the same length, and mid-sentence only where none is near. What
    begins or ends mid-sentence in the source is left so.
    """
    for number, words in _spans(path, flag, max_words):
        for article in _articles(words):
            for part, extra in _parts(article, max_words):
                yield Document(clean(part, keep_speakers), len(part) + extra, f"{path.name} line {number}")


def clean(words: list[str], keep_speakers: bool) -> str:
    """Words to text without markup, remains of tables, invisible and undecodable characters, and repeated spaces.

    Unless ``keep_speakers``, without CHILDES's ``*MOT:``, and without ``A:`` and ``B:`` where both of them speak.
    """
    if not keep_speakers:
        letters = _LETTER_SPEAKERS if set(_LETTER_SPEAKERS) <= set(words) else ()
        words = [word for word in words if word not in letters and not _CHILDES_SPEAKER.fullmatch(word)]
    text = " ".join(words)
    if "&" in text:
        text = html.unescape(text)
    if "<" in text:
        text = _TAG.sub(" ", text)
    text = _INVISIBLE.sub("", text)
    if "||" in text or _BROKEN in text:
        text = " ".join(_legible(word) for word in text.split())
    return " ".join(text.split())


def _legible(word: str) -> str:
    """A word without characters that an earlier conversion lost; nothing of one that had little else, or of a table."""
    if "||" in word or (_BROKEN in word and not _ASCII_LETTER.search(word)):
        return ""
    return word.replace(_BROKEN, "")


def _spans(path: Path, flag: str, max_words: int) -> Iterator[tuple[int, list[str]]]:
    """Number of the first line, and words, of what belongs together in a file."""
    pending: list[str] = []
    began = last = 0
    for number, line in read_lines(path, flag):
        words = line.split()
        long = len(words) > _SPAN_WORDS
        if pending and (long or number != last + 1 or words[:3] == _MARK or len(pending) + len(words) > max_words):
            yield began, pending
            pending = []
        if long:
            yield number, words
        else:
            began = began if pending else number
            pending = pending + words if pending else words
        last = number
    if pending:
        yield began, pending


class _Article(NamedTuple):
    words: list[str]
    heading: int
    """Words of the heading before it, its marks among them."""


def _articles(words: list[str]) -> Iterator[_Article]:
    """Splits a span at its headings ``= = = Title = = =``; the first of them may have lost its left half."""
    sections: list[list[str]] = [[]]
    at = 0
    while at < len(words):
        if words[at] == "=" and words[at : at + 3] == _MARK:
            sections.append([])
            at += 3
        else:
            sections[-1].append(words[at])
            at += 1
    heading, title_next = 0, False
    if len(sections) > 1:
        head, body = sections[0], sections[1]
        # "Pailly = = = Pailly is the name of ...": what is before the first mark is the heading's end.
        title_next = 0 < len(head) <= _TITLE_WORDS and body[: len(head)] == head
    for number, section in enumerate(sections):
        heading += 3 * (number > 0)
        if title_next and len(section) <= _TITLE_WORDS and number < len(sections) - 1:
            heading += len(section)
            title_next = False
            continue
        # Too long for a title: a mark was missing before, and titles and texts change places.
        if section:
            yield _Article(section, heading)
            heading = 0
        title_next = True
    if heading:
        yield _Article([], heading)


def _parts(article: _Article, max_words: int) -> Iterator[tuple[list[str], int]]:
    """Parts of at most ``max_words`` words, of about the same length; the first carries the heading's words."""
    words, extra = article
    start = 0
    while len(words) - start > max_words:
        rest = len(words) - start
        size = math.ceil(rest / math.ceil(rest / max_words))
        ends = (end for end in range(start + size, start + size // 2, -1) if _is_sentence_start(words, end))
        end = next(ends, start + size)
        yield words[start:end], extra
        start, extra = end, 0
    yield words[start:], extra


def _is_sentence_start(words: list[str], at: int) -> bool:
    if _CHILDES_SPEAKER.fullmatch(words[at]) or words[at] in _LETTER_SPEAKERS:
        return True
    before = words[at - 1]
    return bool(
        _SENTENCE_END.search(before) and _SENTENCE_START.match(words[at]) and not _ABBREVIATION.fullmatch(before)
    )
