"""How likely a model finds each word of a text about a picture."""

from __future__ import annotations

from typing import NamedTuple

import torch

from bitgen.trained import Trained

END = ""  # stands for the end of a text


class WordProbability(NamedTuple):
    """A word as it stands in the text, and its log-probability given what stands before it, in nats. The last one of a
    text is END: that it ends there."""

    word: str
    log_probability: float


@torch.no_grad()
def word_probabilities(trained: Trained, image: torch.Tensor, text: str) -> list[WordProbability]:
    """Of each word of a text the sum over its tokens, by teacher forcing; their sum is log p(text, end | image).

    Args:
        image: ``[1, 3, H, W]`` as the processor makes it, or of a model without a tower ``[1, P, C]``.

    What is beyond the context is left out, and the end with it.
    """
    tokenizer, model = trained.tokenizer, trained.model
    # Text that spells a special token is text.
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    room = model.config.max_seq_len - 1
    ids, places = encoded["input_ids"][:room], encoded["offset_mapping"][:room]
    ends = [tokenizer.eos_token_id] * (len(ids) < room)
    whole = torch.tensor([[tokenizer.bos_token_id, *ids, *ends]], device=model.device)
    name = "vision_features" if model.config.takes_features else "pixel_values"
    seen = model.pool_image_tokens(model.encode_image(**{name: image.to(model.device)}).image_tokens)
    logits = model.lm_logits(model.run_stack(whole, torch.ones_like(whole), seen).hidden_states)[0, :-1]
    found = logits.float().log_softmax(dim=1).gather(1, whole[0, 1:, None])[:, 0].tolist()
    words: list[WordProbability] = []
    read = 0  # characters; several tokens may be bytes of the same one
    for (_, end), log_probability in zip(places, found, strict=False):
        piece, read = text[read:end], max(read, end)
        if words and not piece[:1].isspace():
            before = words.pop()
            piece, log_probability = before.word + piece, before.log_probability + log_probability
        words.append(WordProbability(piece, log_probability))
    words = [WordProbability(one.word.strip(), one.log_probability) for one in words]
    return [*words, WordProbability(END, found[-1])] if ends else words
