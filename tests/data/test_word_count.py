"""Words are counted from tokens as a person would count them in the text."""

from bitgen.data.tokenizer import train_bpe
from bitgen.data.word_count import WordCounter
from bitgen.model.processing_bitgen import BitGenProcessor

CAPTIONS = ["a dog runs.", "the brown dog , wet , jumps over two fences", "dog"]


def test_words_of_a_batch() -> None:
    tokenizer = train_bpe(CAPTIONS * 3, vocab_size=280)
    batch = BitGenProcessor(tokenizer, image_size=14, max_length=64).texts(CAPTIONS)
    count = WordCounter(tokenizer)(batch["input_ids"], batch["attention_mask"])
    assert count == sum(len(caption.split()) for caption in CAPTIONS)
