"""The processor of a LLaVA folder: the same pixels, and the same ids from its chat template as in training."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

from tokenizers import AddedToken
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerBase
from transformers.image_utils import PILImageResampling

from bitgen.data.conversations.chat import ASSISTANT, IMAGE_ID, USER, encode_prompt, prompt_text
from bitgen.data.conversations.chat_templates import PLAIN, SYSTEM_PROMPTS, TEMPLATES
from bitgen.model.image_settings import CROP
from bitgen.trained_vlm import TrainedVlm
from bitgen.vlm.vision import VisionSpec

IMAGE_TOKEN = "<image>"
_QUESTION, _ANSWER = "What is it?", "A dog."
# Messages of parts become messages of text, as training has them: a picture is a line of its own.
_FLATTEN = (
    "{% set flat = namespace(messages=[]) %}{% for message in messages %}{% set said = namespace(text='') %}"
    "{% if message['content'] is string %}{% set said.text = message['content'] %}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{% set said.text = said.text + 'IMAGE\\n' %}"
    "{% else %}{% set said.text = said.text + part['text'] %}{% endif %}{% endfor %}{% endif %}"
    "{% set flat.messages = flat.messages + [{'role': message['role'], 'content': TEXT}] %}{% endfor %}"
).replace("IMAGE", IMAGE_TOKEN)
_TRIMMED = "said.text | trim"
_PICTURES_ALONE = f"'{IMAGE_TOKEN}' * (said.text.split('{IMAGE_TOKEN}') | length - 1)"
_SYSTEM = (
    "{% if flat.messages[0]['role'] != 'system' %}"
    "{% set flat.messages = [{'role': 'system', 'content': SYSTEM}] + flat.messages %}{% endif %}"
)
_INTO_THE_FIRST = (
    "{% set flat.messages = [{'role': 'user', 'content': SYSTEM + '\\n\\n' + flat.messages[0]['content']}] "
    "+ flat.messages[1:] %}"
)
_IN_PARTS = (
    "{% set parts = namespace(messages=[]) %}{% for message in flat.messages %}"
    "{% set parts.messages = parts.messages + "
    "[{'role': message['role'], 'content': [{'type': 'text', 'text': message['content']}]}] %}{% endfor %}"
    "{% set flat.messages = parts.messages %}"
)
_END = "{% set asks, add_generation_prompt = add_generation_prompt, false %}{% set messages = flat.messages %}"


def tokenizer_with_image(tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedTokenizerBase, int]:
    """A copy that has ``<image>`` as a special token, and its id."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = None  # the processor has it
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    return tokenizer, int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))


def llava_processor(trained: TrainedVlm, tokenizer: PreTrainedTokenizerBase, strategy: str) -> LlavaProcessor:
    """Image processor, tokenizer and chat template, whose ids are compared with those of training.

    Args:
        tokenizer: of :func:`tokenizer_with_image`.
        strategy: ``default`` drops one token before the patches, ``full`` none.

    Raises:
        ValueError: no chat template of one text gives what training saw.
    """
    tower = trained.model.tower
    assert tower is not None and tower.spec.image_size is not None
    processor = LlavaProcessor(
        image_processor(tower.spec),
        tokenizer,
        patch_size=tower.vision_config["patch_size"],
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=tower.spec.prefix_tokens,
    )
    for source in _templates(trained):
        literal = _asks(trained, processor, source)
        if literal is None:
            continue
        processor.chat_template = source + "{% if asks %}{{ " + repr(literal) + " }}{% endif %}"
        if all(_ids(processor, chat) == _expected(trained, chat) for chat in _probes(trained)):
            return processor
    raise ValueError(
        f"--format llava: its chat template {trained.speech.template} gives other tokens there than in training; "
        "export without --format llava"
    )


def image_processor(spec: VisionSpec) -> CLIPImageProcessor:
    """What prepares pictures as they were in training, for what is no padding."""
    side: dict[str, Any] = {"height": spec.image_size, "width": spec.image_size}
    return CLIPImageProcessor(
        do_resize=True,
        size={"shortest_edge": spec.shortest or spec.image_size} if spec.fit == CROP else side,
        resample=PILImageResampling[spec.resample.upper()],
        do_center_crop=spec.fit == CROP,
        crop_size=side,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=list(spec.mean),
        image_std=list(spec.std),
        do_convert_rgb=True,
    )


# ---- the chat template ----


def _templates(trained: TrainedVlm) -> Iterator[str]:
    """Templates of messages of parts, around the one of training, which knows texts, lists, or no system message."""
    speech = trained.speech
    source = TEMPLATES[speech.template] or trained.tokenizer.get_chat_template()
    flatten = _FLATTEN.replace("TEXT", _PICTURES_ALONE if speech.template == PLAIN else _TRIMMED)
    start = trained.tokenizer.bos_token or ""
    begins = trained.tokenizer("a").input_ids[:1] == [trained.tokenizer.bos_token_id]
    head = "{% set start = " + repr(start if begins else "") + " %}"
    system = speech.system_prompt
    ways = [""]
    if system is not None and speech.template != PLAIN:
        said = repr(SYSTEM_PROMPTS.get(system, system).strip())
        ways = [_SYSTEM.replace("SYSTEM", said), _INTO_THE_FIRST.replace("SYSTEM", said)]
    for way, parts in itertools.product(ways, ("", _IN_PARTS)):
        yield head + flatten + way + parts + _END + source


def _probes(trained: TrainedVlm) -> list[list[tuple[str, bool, str]]]:
    """Conversations that wait for an answer: (role, whether a picture is shown, text)."""
    first = (USER, True, _QUESTION)
    if trained.speech.template == PLAIN:
        return [[first]]
    return [[first], [first, (ASSISTANT, False, _ANSWER), (USER, False, _QUESTION)], [(USER, False, _QUESTION)]]


def _messages(chat: list[tuple[str, bool, str]]) -> list[dict[str, Any]]:
    return [
        {"role": role, "content": [{"type": "image"}] * shows + [{"type": "text", "text": text}]}
        for role, shows, text in chat
    ]


def _rendered(processor: LlavaProcessor, source: str, chat: list, asks: bool) -> str:
    return processor.apply_chat_template(_messages(chat), chat_template=source, add_generation_prompt=asks)


def _ids(processor: LlavaProcessor, chat: list) -> list[int]:
    try:
        text = processor.apply_chat_template(_messages(chat), add_generation_prompt=True)
    except Exception:  # what a template of somebody else may raise
        return []
    return list(processor.tokenizer(text, add_special_tokens=False).input_ids)


def _expected(trained: TrainedVlm, chat: list) -> list[int]:
    """The ids of training, with the image token's id in the places of pictures."""
    image_id = tokenizer_with_image(trained.tokenizer)[1]
    messages = [{"role": role, "content": f"{IMAGE_TOKEN}\n" * shows + text} for role, shows, text in chat]
    ids = encode_prompt(trained.tokenizer, messages, trained.speech.template, trained.speech.system_prompt)
    return [image_id if token == IMAGE_ID else token for token in ids.tolist()]


def _asks(trained: TrainedVlm, processor: LlavaProcessor, source: str) -> str | None:
    """What stands between a question and its answer in training; None: this template does not show it."""
    speech = trained.speech
    if speech.template == PLAIN:
        return ""
    wanted = prompt_text(
        trained.tokenizer, [{"role": USER, "content": _QUESTION}], speech.template, speech.system_prompt
    )
    try:
        said = _rendered(processor, source, [(USER, False, _QUESTION)], False)
    except Exception:  # what a template of somebody else may raise
        return None
    return wanted.removeprefix(said) if wanted.startswith(said) else None
