"""Scores of captions against several references an image: BLEU-4, chrF, ROUGE-L and CIDEr-D.

All four read the same words: lower case, no punctuation, clitics apart (``dog 's``, ``do n't``), hyphenated words
whole. That is what COCO's tokenizer, a Java program, makes of English captions. Scripts that put no spaces between
words are read character by character, as is usual for them; see :func:`words`.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from itertools import zip_longest

import sacrebleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

# Han, Hiragana, Katakana, Thai, Lao, Burmese and Khmer: no spaces between words.
_UNSPACED = (
    "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f"
    "\u0e00-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff"
)
# Vowel signs and accents belong to the letter before them, which `\w` does not know; so do the two joiners, of Persian
# and Hindi. Variation selectors and key caps are emoji's.
_MARKS = "\u200c\u200d" + "".join(
    chr(code)
    for code in range(0x300, 0x20000)
    if unicodedata.category(chr(code)) in ("Mn", "Mc") and not (0xFE00 <= code <= 0xFE0F or 0x20D0 <= code <= 0x20FF)
)
_RUN = f"(?:[^\\W{_UNSPACED}][{_MARKS}]*)+"
_WORD = re.compile(rf"(?=[{_UNSPACED}])\w[{_MARKS}]*|{_RUN}(?=n't\b)|n't\b|'(?:s|re|ve|ll|d|m)\b|{_RUN}(?:-{_RUN})*")


def words(text: str) -> str:
    """The words of a caption, one space between them; of a script without spaces, its characters."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFC", text.lower()).replace("\u2019", "'")))


def caption_metrics(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Scores of one caption an image, and what they were computed from.

    - ``bleu4``, percent: corpus BLEU over 1 to 4 words, no smoothing, brevity by the closest reference (sacrebleu).
    - ``chrf``, percent: character n-grams of 1 to 6, beta 2; the best reference of each image counts (sacrebleu).
    - ``rouge_l``, percent: as COCO has it, F of the best precision and the best recall over an image's references, with
      beta 1.2; mean over images (pycocoevalcap).
    - ``cider``: CIDEr-D as COCO has it, mean over an image's references and over images, with document frequencies of
      these references; 100 times what the code gives, as papers print it (pycocoevalcap). NaN for a single image, over
      which no document frequency says anything.
    - ``images``, ``references``; ``empty_captions`` of no word, which score 0; ``distinct_captions``: different ones;
      ``mean_words``, ``mean_reference_words``: length.

    References without a word are left out.

    Raises:
        ValueError: no captions, not as many as lists of references, or an image all of whose references have no word.
    """
    if not captions:
        raise ValueError("no captions to score")
    if len(captions) != len(references):
        raise ValueError(f"{len(captions)} captions for {len(references)} lists of references")
    written = [words(caption) for caption in captions]
    wanted = [[text for text in map(words, texts) if text] for texts in references]
    for row, (found, texts) in enumerate(zip(wanted, references, strict=True)):
        if not found:
            raise ValueError(f"image {row} has no reference with a word in it: {list(texts)!r}; remove such images")

    # One stream of references after the other, None where an image has fewer.
    streams = [list(stream) for stream in zip_longest(*wanted)]
    bleu = sacrebleu.corpus_bleu(written, streams, smooth_method="none", tokenize="none", force=True)
    chrf = sacrebleu.corpus_chrf(written, streams)
    of_image = {row: texts for row, texts in enumerate(wanted)}
    by_image = {row: [text] for row, text in enumerate(written)}
    rouge, _ = Rouge().compute_score(of_image, by_image)
    cider = Cider().compute_score(of_image, by_image)[0] if len(written) > 1 else math.nan
    flat = [text for texts in wanted for text in texts]
    return {
        "bleu4": bleu.score,
        "chrf": chrf.score,
        "rouge_l": 100 * float(rouge),
        "cider": 100 * float(cider),
        "images": len(written),
        "references": len(flat),
        "empty_captions": sum(not text for text in written),
        "distinct_captions": len(set(written)),
        "mean_words": _mean_length(written),
        "mean_reference_words": _mean_length(flat),
    }


def _mean_length(texts: Sequence[str]) -> float:
    return sum(len(text.split()) for text in texts) / len(texts)
