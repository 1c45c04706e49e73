"""Chat templates in the style of public models, and tokenizers that have their special tokens."""

from __future__ import annotations

import copy
import json
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from support.tokenizers import prose, tiny_tokenizer

CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI_3 = (  # it says nothing of a system message
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<|user|>\n' + message['content'] + '<|end|>\n<|assistant|>\n' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + '<|end|>\n' }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('roles must alternate') }}{% elif message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
LISTS = (  # for it a text is a list of letters that are no parts
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
)
BLOCKS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
)
BLOCKS_WITHOUT_ENDS = BLOCKS.replace("message['content'] + '<|im_end|>' }}{% endgen", "message['content'] }}{% endgen")
BLOCKS_WITHOUT_ENDS = BLOCKS_WITHOUT_ENDS.replace("{% endgeneration %}", "{% endgeneration %}{{ '<|im_end|>' }}")
BLOCKS_WITH_LINES = BLOCKS.replace("'<|im_end|>' }}{% endgen", "'<|im_end|>\n' }}{% endgen")
HEADER_ONLY_WHEN_ASKED = (
    "{% for message in messages %}{{ message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ANSWER: ' }}{% endif %}"
)
THINKING = CHATML.replace(
    "message['role'] + '\n' +",
    "message['role'] + '\n' + ('<think>\n\n</think>\n\n' if loop.last and message['role'] == 'assistant' else '') +",
)


class Style(NamedTuple):
    """A template, the special tokens that it needs, and the one that ends an answer."""

    template: str
    specials: tuple[str, ...]
    end: str


_CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
STYLES = {
    "chatml": Style(CHATML, _CHATML_TOKENS, "<|im_end|>"),
    "llama3": Style(LLAMA_3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>"),
    "gemma": Style(GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>"),
    "phi3": Style(PHI_3, ("<|user|>", "<|assistant|>", "<|end|>"), "<|end|>"),
    "mistral": Style(MISTRAL, (), "</s>"),
    "lists": Style(LISTS, _CHATML_TOKENS, "<|im_end|>"),
    "blocks": Style(BLOCKS, _CHATML_TOKENS, "<|im_end|>"),
    "blocks_without_ends": Style(BLOCKS_WITHOUT_ENDS, _CHATML_TOKENS, "<|im_end|>"),
    "blocks_with_lines": Style(BLOCKS_WITH_LINES, _CHATML_TOKENS, "<|im_end|>"),
    "header_only_when_asked": Style(HEADER_ONLY_WHEN_ASKED, (), "</s>"),
    "thinking": Style(THINKING, _CHATML_TOKENS, "<|im_end|>"),
}


def byte_level():
    """The project's own kind, whose offsets leave out the space before a word."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def sentencepiece_like():
    """LLaMA 2's kind: pieces with their space before them, bytes for what is unknown, BOS before a text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=specials, show_progress=False, max_token_length=8, min_frequency=2
    )
    tokenizer.train_from_iterator([prose(seed, 20) for seed in range(3)], trainer)
    plain = json.loads(tokenizer.to_str())  # bytes are ordinary tokens, as in a real one
    plain["added_tokens"] = plain["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(plain))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


TOKENIZERS = {"byte_level": byte_level, "sentencepiece_like": sentencepiece_like}


def styled(style: str, kind: str = "byte_level", strip: bool = False):
    """A tokenizer of a kind with a style's template and special tokens; ``strip``: they swallow spaces after them."""
    tokenizer, chosen = TOKENIZERS[kind](), STYLES[style]
    added = [AddedToken(token, special=True, normalized=False, rstrip=strip) for token in chosen.specials]
    tokenizer.add_special_tokens({"additional_special_tokens": added}) if added else None
    tokenizer.chat_template = chosen.template
    return tokenizer
