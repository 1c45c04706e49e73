"""Scores of captions against several references an image: BLEU-4, chrF, ROUGE-L and CIDEr-D.

All four read the same words: lower case, no punctuation, clitics apart (``dog 's``, ``do n't``), hyphenated words
whole. That is nearly what COCO's tokenizer, a Java program, makes of English captions. It keeps times, numbers and
abbreviations whole (``10:30``, ``3.50``, ``o'clock``, ``u.s.``) and signs (``$``, ``&``, ``%``), which are parted and
left out here. Scripts that put no spaces between
words are read character by character, as is usual for them; see :func:`bitgen.data.scripts.split_words`.
"""

from __future__ import annotations

from collections.abc import Sequence

from bitgen.data.scripts import split_words
from bitgen.evaluation.text_metrics import SCORERS, mean_length, with_words

_SCORES = ("bleu", "chrf", "rouge_l", "cider")


def words(text: str) -> str:
    """The words of a caption, one space between them; of a script without spaces, its characters."""
    return " ".join(split_words(text))


def caption_metrics(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Scores of one caption an image, and what they were computed from.

    - ``bleu4``, percent: corpus BLEU over 1 to 4 words, no smoothing, brevity by the closest reference (sacrebleu).
    - ``chrf``, percent: character n-grams of 1 to 6, beta 2; the best reference of each image counts (sacrebleu).
    - ``rouge_l``, percent: as COCO has it, F of the best precision and the best recall over an image's references, with
      beta 1.2; mean over images.
    - ``cider``: CIDEr-D as COCO has it, mean over an image's references and over images, with document frequencies of
      these references; 100 times what the code gives, as papers print it (pycocoevalcap). NaN for a single image, over
      which no document frequency says anything.
    - ``images``, ``references``; ``empty_captions`` of no word, which score 0; ``distinct_captions``: different ones;
      ``mean_words``, ``mean_reference_words``: length.

    References without a word are left out.

    Raises:
        ValueError: no captions, not as many as lists of references, or an image all of whose references have no word.
    """
    written, wanted = with_words(captions, references, split_words, "caption", "image")
    scores = {key: value for name in _SCORES for key, value in SCORERS[name](written, wanted).items()}
    flat = [text for texts in wanted for text in texts]
    return {
        "bleu4": scores["bleu4"],
        "chrf": scores["chrf"],
        "rouge_l": scores["rouge_l"],
        "cider": scores["cider"],
        "images": len(written),
        "references": len(flat),
        "empty_captions": sum(not text for text in written),
        "distinct_captions": len(set(written)),
        "mean_words": mean_length(written),
        "mean_reference_words": mean_length(flat),
    }
