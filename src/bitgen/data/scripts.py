"""The words of a text in any script: what stands between spaces, and single characters where no spaces are written."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

# Han, Hiragana, Katakana, Thai, Lao, Burmese and Khmer: no spaces between words.
_UNSPACED = (
    "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f"
    "\u0e00-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff"
)
_ANY_UNSPACED = re.compile(f"[{_UNSPACED}]")


@cache
def _word() -> re.Pattern[str]:
    # Vowel signs and accents belong to the letter before them, which `\w` does not know; so do the two joiners, of
    # Persian and Hindi. Variation selectors and key caps are emoji's.
    marks = "\u200c\u200d" + "".join(
        chr(code)
        for code in range(0x300, 0x20000)
        if unicodedata.category(chr(code)) in ("Mn", "Mc")
        and not (0xFE00 <= code <= 0xFE0F or 0x20D0 <= code <= 0x20FF)
    )
    run = f"(?:[^\\W{_UNSPACED}][{marks}]*)+"
    return re.compile(rf"(?=[{_UNSPACED}])\w[{marks}]*|{run}(?=n't\b)|n't\b|'(?:s|re|ve|ll|d|m)\b|{run}(?:-{run})*")


def is_unspaced(text: str) -> bool:
    """Whether a text holds a character of a script that puts no spaces between words."""
    return not text.isascii() and _ANY_UNSPACED.search(text) is not None


def split_words(text: str) -> list[str]:
    """The words of a text, in lower case and without punctuation; no word holds white space.

    Clitics stand apart (``dog 's``, ``do n't``) and hyphenated words stay whole, as COCO's tokenizer has it, which also
    keeps times, numbers and abbreviations with marks in them whole (10:30, 3.50, u.s.). Chinese, Japanese, Thai, Lao,
    Burmese and Khmer are read character by character, each with its vowel signs. Korean does put
    spaces between words, and its words are these (eojeol); the two rules hold within one sentence of mixed scripts.
    """
    return _word().findall(unicodedata.normalize("NFC", text.lower()).replace("\u2019", "'"))


def count_words(text: str) -> int:
    """How many words a text has for a budget: what stands between spaces, in unspaced scripts :func:`split_words`.

    Text with spaces between its words has as many as ``text.split()``, punctuation that stands alone included.
    """
    chunks = text.split()
    if not is_unspaced(text):
        return len(chunks)
    return sum(max(len(split_words(chunk)), 1) if is_unspaced(chunk) else 1 for chunk in chunks)
