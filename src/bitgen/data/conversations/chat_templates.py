"""Chat templates and system prompts that have names."""

from __future__ import annotations

# Named system prompts of the setting; any other text is taken as it is.
SYSTEM_PROMPTS = {
    "helpful": "You are a helpful assistant that answers questions about images.",
    "chest_xray": "The assistant compares chest X-rays and says what is seen and what has changed since the prior one.",
}
TOKENIZER, PLAIN = "tokenizer", "plain"
_LIBRA = (
    "{{ start }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% else %}"
    + SYSTEM_PROMPTS["chest_xray"]
    + "{% endif %}{{ ' ' }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
_PLAIN = (
    "{{ start }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
# By name: the tokenizer's own; Libra's and Vicuna's shape; without any prompt: the visuals, then their caption.
TEMPLATES = {TOKENIZER: None, "libra_v1": _LIBRA, PLAIN: _PLAIN}
