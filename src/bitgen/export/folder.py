"""An exported model on disk: weights, configuration, code, tokenizer, processor, generation settings, model card."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from tokenizers import processors
from transformers import GenerationConfig, PreTrainedTokenizerFast

import bitgen.model
from bitgen.data.tokenizer import vocabulary_size
from bitgen.export.card import IMAGE_TASK
from bitgen.export.merge import merged_state
from bitgen.machine.files import apply_umask, file_hash
from bitgen.model.auto_processing_bitgen import BitGenAutoProcessor, BitGenImageProcessor
from bitgen.model.causal_lm_bitgen import CHECKSUMS, BitGenForCausalLM
from bitgen.model.configuration_bitgen import BitGenConfig
from bitgen.trained import Trained, kept_of_training

# `save_pretrained` writes the entry of the saved class alone, and a model is loaded through five.
AUTO_MAP = {
    "AutoConfig": "configuration_bitgen.BitGenConfig",
    "AutoModel": "causal_lm_bitgen.BitGenTextModel",
    "AutoModelForCausalLM": "causal_lm_bitgen.BitGenForCausalLM",
    "AutoModelForImageTextToText": "causal_lm_bitgen.BitGenForCausalLM",
    "AutoProcessor": "auto_processing_bitgen.BitGenAutoProcessor",
}
_IMAGE_TASK = {
    "impl": "pipeline_bitgen.BitGenImageTextToTextPipeline",
    "pt": ["AutoModelForImageTextToText"],
    "type": "multimodal",
}
# Both names of one task: transformers 4 knew the first one too.
PIPELINES = {"image-to-text": _IMAGE_TASK, IMAGE_TASK: _IMAGE_TASK}
LONGEST_ANSWER = 64
_CODE = Path(bitgen.model.__path__[0])
# What builds new models, from pretrained towers.
_NOT_CARRIED = ("__init__.py", "factory.py", "pretrained_tower.py", "open_clip_files.py")


def exported_model(loaded: Trained, merge_lora: bool, seen: Mapping[str, int] | None = None) -> BitGenForCausalLM:
    """The checkpoint's weights as a language model with generation settings; ``loaded`` is left as it is.

    Args:
        seen: how much its training showed it, for the record.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    settings = copy.deepcopy(model.config.to_dict())
    for name in ("model_type", "transformers_version"):
        settings.pop(name, None)
    settings.update(
        use_gradient_checkpointing=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # by which whoever opens it knows what it never learned
        trained_with=kept_of_training(loaded.config, loaded.temperature) | dict(seen or {}),
        # vocab_size may be more: only this tells whose tokenizer lies beside the model
        tokenizer_size=vocabulary_size(tokenizer),
    )
    merges = merge_lora and model.vision_encoder is not None and model.config.vision_tuning == "lora"
    if merges:
        settings["vision_tuning"] = "frozen"
    exported = BitGenForCausalLM(BitGenConfig(**settings))
    exported.load_state_dict(merged_state(model) if merges else model.state_dict())
    exported.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=min(LONGEST_ANSWER, model.config.max_seq_len // 2),
    )
    return exported.eval()


def exported_processor(loaded: Trained) -> BitGenAutoProcessor:
    """Tokenizer and image processor as training used them; the tokenizer puts BOS before a text and nothing after."""
    config = loaded.model.config
    tokenizer = causal_tokenizer(loaded.tokenizer, config.max_seq_len)
    image_processor = None
    if not config.takes_features:
        seen = {"max_image_pixels": loaded.processor.max_image_pixels, **config.normalisation}
        image_processor = BitGenImageProcessor(config.image_size, **seen)
    return BitGenAutoProcessor(image_processor, tokenizer)


def causal_tokenizer(tokenizer: PreTrainedTokenizerFast, max_seq_len: int) -> PreTrainedTokenizerFast:
    """A copy whose template is ``BOS text``, and ``BOS text EOS second`` for pairs."""
    tokenizer = copy.deepcopy(tokenizer)
    for name in (
        "add_bos_token",
        "add_eos_token",
    ):  # with these in its settings, transformers would rebuild the template
        tokenizer.init_kwargs.pop(name, None)
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {eos} $B",
        special_tokens=sorted({(bos, tokenizer.bos_token_id), (eos, tokenizer.eos_token_id)}),
    )
    tokenizer.model_max_length = max_seq_len
    tokenizer.padding_side = "right"
    return tokenizer


def carried_code() -> list[str]:
    """The names of the files of code that an export carries."""
    return [path.name for path in sorted(_CODE.glob("*.py")) if path.name not in _NOT_CARRIED]


def carry_code(folder: Path) -> None:
    """Put the code of a BitGen model beside its weights, which ``trust_remote_code`` loads."""
    for name in carried_code():
        shutil.copyfile(_CODE / name, folder / name)


def write_folder(
    loaded: Trained, folder: Path, card: str, merge_lora: bool, seen: Mapping[str, int] | None = None
) -> None:
    """Write everything into ``folder``, which nothing needs this repository to load; ``seen`` as in
    :func:`exported_model`."""
    model = exported_model(loaded, merge_lora, seen)
    model.config.auto_map = dict(AUTO_MAP)
    if not model.config.takes_features:
        model.config.custom_pipelines = dict(PIPELINES)
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        apply_umask(weights)
    exported_processor(loaded).save_pretrained(folder)
    carry_code(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    # Of what nobody edits by hand; transformers does not look at it, BitGen's own entries do.
    checked = [*sorted(folder.glob("*.safetensors")), folder / "tokenizer.json"]
    content = json.dumps({path.name: file_hash(path) for path in checked}, indent=2)
    (folder / CHECKSUMS).write_text(content + "\n", encoding="utf-8")
