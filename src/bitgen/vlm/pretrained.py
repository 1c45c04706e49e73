"""A published language model's folder: its family, its tokenizer, how it is quantized, and what may be wrong."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from bitgen.guards.failures import explained
from bitgen.guards.json_files import BadJson, read_json
from bitgen.guards.printable import printable
from bitgen.machine.hub import TOKENIZERS
from bitgen.model.configuration_bitgen import BitGenConfig

BITGEN = BitGenConfig.model_type
FAMILIES = {  # the model_type of a configuration, and whom it stands for
    "llama": "LLaMA, Meditron, Vicuna, SmolLM2",
    "mistral": "Mistral",
    "qwen2": "Qwen 2 and 2.5",
    "qwen3": "Qwen 3",
    "phi3": "Phi-3",
    "gemma": "Gemma",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3, text alone",
    BITGEN: "an export of BitGen",
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
QUANTIZATIONS = ("4bit", "8bit")
FILES = ("*.json", "*.jinja", "model*.safetensors", "tokenizer*", "*.model", "*.txt")
WEIGHTS = ("model.safetensors", "model-*.safetensors")
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


def check_choice(setting: str, value: str, choices: Any) -> None:
    """Raises ``ValueError`` with the choices where ``value`` is none of them."""
    if value not in choices:
        raise ValueError(f"{setting} {printable(value, 60)!r} is unknown; choose one of {', '.join(choices)}")


def quantized(quantization: str, compute: torch.dtype) -> BitsAndBytesConfig:
    """What transformers needs to know for ``4bit`` or ``8bit``; ``ValueError`` where bitsandbytes is missing."""
    check_choice("quantization", quantization, QUANTIZATIONS)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f"quantization {quantization} needs the package bitsandbytes: pip install bitsandbytes")
    skipped = {"llm_int8_skip_modules": ["lm_head"]}
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, **skipped)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute, **skipped)


def family_of(folder: Path) -> str:
    """The ``model_type`` of a model's folder; ``ValueError`` where there is none of :data:`FAMILIES`."""
    try:
        kind = read_json(folder / "config.json", dict, {"model_type": str})["model_type"]
    except OSError as error:
        raise ValueError(f"{folder} holds no config.json; name the folder of a Hugging Face language model") from error
    except BadJson as error:
        raise ValueError(f"{folder / 'config.json'}: {error}; download the model again") from error
    if kind not in FAMILIES:
        known = "; ".join(f"{name} ({who})" for name, who in FAMILIES.items())
        raise ValueError(f"{folder} is a model of the unknown family {printable(kind, 60)}; known are {known}")
    return kind


def tokenizer_of(folder: Path, kind: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's folder, with a padding token; ``ValueError`` where it is missing or has no end."""
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ValueError(f"{folder} holds no tokenizer; put the model's tokenizer.json and tokenizer_config.json there")
    # For an export of BitGen AutoTokenizer would ask whether to trust the folder's code, which a tokenizer needs not.
    loader: Any = PreTrainedTokenizerFast if kind == BITGEN else AutoTokenizer
    options = {} if kind == BITGEN else {"trust_remote_code": False}
    tokenizer = opened(folder, lambda: loader.from_pretrained(folder, **options))
    if tokenizer.eos_token is None:
        raise ValueError(f"{folder}: its tokenizer has no EOS token, so that no answer would ever end; name one there")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # masks are never made from ids
    return tokenizer


def opened(what: object, open_it: Any) -> Any:
    """What ``open_it()`` gives; what libraries raise on the way becomes one ``ValueError`` that names ``what``."""
    try:
        return open_it()
    except BaseException as error:  # transformers, safetensors and torch raise many kinds; tokenizers in Rust its own
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if isinstance(error, MemoryError) or "Memory ran out" in (explained(error) or ""):
            raise
        reason = printable(next(iter(str(error).splitlines()), "no reason given"), 300)
        raise ValueError(
            f"{what} cannot be opened ({type(error).__name__}: {reason}); restore it, or download it again"
        ) from error


def make_savable(config: GenerationConfig) -> None:
    """Takes sampling values out of a published configuration that does not sample: transformers would refuse to save
    the model with them as soon as anything else in it has changed."""
    try:
        config.validate(strict=True)
    except ValueError:
        for name in _SAMPLING:
            if hasattr(config, name):
                setattr(config, name, None)
