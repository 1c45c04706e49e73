"""Causal language models for the scorer: whole, as the official pipeline calls them, or body and head apart."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoProcessor, PreTrainedModel

from bitgen.data.tokenizer import check_vocabulary
from bitgen.evaluation.babylm.encoding import ProcessorEncoder
from bitgen.evaluation.babylm.kept import fingerprint
from bitgen.export.folder import exported_model, exported_processor
from bitgen.guards.printable import printable
from bitgen.machine.files import digest
from bitgen.model.causal_lm_bitgen import BitGenForCausalLM
from bitgen.model.sequence_layout import SequenceLayout
from bitgen.trained import Trained, is_export, is_model_folder, open_model

# Of a configuration, what no pass through the model reads.
_VOLATILE = (
    *("transformers_version", "_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "trained_with"),
)


class PackedInputs(NamedTuple):
    """``input_ids [B, N]``, their ``positions [B, N]``, and ``visible`` bool ``[B, N, N]``: which (columns) each of
    them (rows) sees."""

    input_ids: Tensor
    positions: Tensor
    visible: Tensor


class LanguageModel(Protocol):
    """A causal language model in eval mode.

    ``max_length``: the longest sequence that it declares to read; None where it says nothing.
    """

    max_length: int | None

    def logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """``[B, T]`` ids, padded right, and mask to logits ``[B, T, V]``."""

    def states_of_long(self, input_ids: Tensor) -> Tensor | None:
        """What the head reads of one text ``[T]`` beyond ``max_length``, ``[T, D]``; None where only logits are to be
        had, which are ``T`` times the vocabulary at once."""

    def hidden_states(self, inputs: PackedInputs) -> Tensor:
        """What the head reads, ``[B, N, D]``; any exception means that this model cannot read packed rows."""

    def head(self, hidden_states: Tensor) -> Tensor:
        """``[R, D]`` to logits ``[R, V]``."""


class HuggingFaceModel:
    """Any ``AutoModelForCausalLM``."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.max_length = getattr(model.config, "max_position_embeddings", None)

    def logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return (output[0] if isinstance(output, tuple) else output["logits"])[:, -input_ids.shape[1] :]

    def states_of_long(self, input_ids: Tensor) -> Tensor | None:
        return None

    def hidden_states(self, inputs: PackedInputs) -> Tensor:
        dtype = self.model.dtype
        mask = torch.zeros(inputs.visible.shape, dtype=dtype, device=inputs.visible.device)
        mask.masked_fill_(~inputs.visible, torch.finfo(dtype).min)
        output = self.model.base_model(
            input_ids=inputs.input_ids, attention_mask=mask[:, None], position_ids=inputs.positions, use_cache=False
        )
        return output.last_hidden_state

    def head(self, hidden_states: Tensor) -> Tensor:
        return self.model.get_output_embeddings()(hidden_states)


class BitGenLanguageModel:
    """BitGen's own, in memory or loaded from an export: its stack reads packed rows through a layout."""

    def __init__(self, model: Any) -> None:  # a BitGenForCausalLM, or the class of that name in an export
        self.model = model
        self.max_length = model.config.max_seq_len

    def logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids, attention_mask).logits

    def states_of_long(self, input_ids: Tensor) -> Tensor | None:
        return self.model(input_ids[None], output_hidden_states=True, logits_to_keep=1).hidden_states[-1][0]

    def hidden_states(self, inputs: PackedInputs) -> Tensor:
        layout = SequenceLayout(inputs.positions, inputs.visible[:, None], torch.ones_like(inputs.input_ids))
        return self.model.run_stack(inputs.input_ids, layout.real, layout=layout).hidden_states

    def head(self, hidden_states: Tensor) -> Tensor:
        return self.model.lm_logits(hidden_states)


def as_language_model(model: torch.nn.Module) -> LanguageModel:
    """The model as the scorer uses it."""
    if hasattr(model, "run_stack") and hasattr(model, "lm_logits"):  # by its methods: an export brings its own class
        return BitGenLanguageModel(model)
    return HuggingFaceModel(model)


def load_model_folder(
    path: str | Path, device: torch.device, trust_remote_code: bool = False
) -> tuple[LanguageModel, ProcessorEncoder]:
    """A Hugging Face model, in float32 as the scores need it, and its processor.

    Args:
        trust_remote_code: run the Python code that the folder brings, where transformers does not know the model.

    Raises:
        ValueError: it cannot be loaded as a causal language model with a processor or a tokenizer, it lacks weights, or
            its tokenizer is not the model's.
    """
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path, trust_remote_code=trust_remote_code, dtype=torch.float32, output_loading_info=True
        )
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code, padding_side="right")
    except Exception as error:  # missing or damaged files, code of the folder's own: transformers raises many kinds
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise ValueError(
                f"{path} brings Python code of its own, and it is not run unasked. Read it, and if you trust it, write "
                "--trust_remote_code True"
            ) from error
        reason = printable(next(iter(str(error).splitlines()), "no reason given"), 300)
        raise ValueError(
            f"{path} cannot be loaded as a causal language model with its processor ({type(error).__name__}: {reason}):"
            " give a folder with config.json, weights and tokenizer"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{path} lacks {len(missing)} weights of a causal language model, first {missing[0]}: they would be "
            "random. Give a folder that holds the whole model"
        )
    check_vocabulary(getattr(processor, "tokenizer", processor), model.config.get_text_config(), path)
    return as_language_model(model.to(device).eval()), ProcessorEncoder(processor)


def run_language_model(trained: Trained, device: torch.device) -> tuple[LanguageModel, ProcessorEncoder]:
    """A model of ours and its processor as its export would be loaded."""
    is_one = isinstance(trained.model, BitGenForCausalLM)
    model = (trained.model if is_one else exported_model(trained, merge_lora=False)).to(device)
    return as_language_model(model), ProcessorEncoder(exported_processor(trained))


def open_language_model(
    path: str | Path, device: torch.device, trust_remote_code: bool = False
) -> tuple[LanguageModel, ProcessorEncoder]:
    """The model of a run, a checkpoint, an export of ours, or any folder of a Hugging Face causal language model.

    Raises:
        ValueError: it cannot be read as either; see :func:`load_model_folder`.
    """
    if is_model_folder(path) and not is_export(path):
        return load_model_folder(path, device, trust_remote_code)
    return run_language_model(open_model(path), device)


def identity(model: Any, encoder: ProcessorEncoder, folder: str | Path) -> str:
    """SHA-256 over all that a loaded model's answers depend on: itself, its tokenizer, and the Python code that its
    folder brings.

    Raises:
        ValueError: a file of code cannot be read.
    """
    code = sorted(path for path in Path(folder).glob("*.py") if path.is_file())
    return fingerprint(model_fingerprint(model), encoder.rules(), *code)


def model_fingerprint(model: Any) -> str:
    """SHA-256 over a language model's class, configuration and weights."""
    network = model.model
    config = {name: value for name, value in network.config.to_dict().items() if name not in _VOLATILE}
    about = json.dumps([type(network).__name__, config], sort_keys=True, default=str)
    return hashlib.sha256((about + digest(sorted(network.state_dict().items()))).encode()).hexdigest()
