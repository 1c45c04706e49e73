"""Opening what was trained: one verified way to a model, from a run's folder, one of its checkpoints or an export."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from bitgen.checkpoint.format import checkpoint_folders, load_weights, read_state, resolve_checkpoint, step_of
from bitgen.checkpoint.manifest import MANIFEST_FILE, STATE_FILE, CheckpointError, CheckpointFiles, DamagedCheckpoint
from bitgen.config import Config, ConfigError
from bitgen.config.sources import BUILT_IN_QUESTIONS
from bitgen.data.records import SIDECAR
from bitgen.data.text_shards import TEXT_SIDECAR, tokenizer_sha256
from bitgen.data.tokenizer import check_vocabulary, kept_spec, load_tokenizer, vocabulary_size
from bitgen.guards.json_files import BadJson, parse_json, read_json
from bitgen.guards.names import inside
from bitgen.guards.printable import printable
from bitgen.machine.files import held
from bitgen.model.auto_processing_bitgen import BitGenAutoProcessor
from bitgen.model.causal_lm_bitgen import CHECKSUMS, BitGenForCausalLM
from bitgen.model.configuration_bitgen import BitGenConfig
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.processing_bitgen import BitGenProcessor
from bitgen.model.token_ids import know_words

TOKENIZER_FOLDER = "tokenizer"
# A file of each kind of folder that is written as a whole.
_WRITTEN_WHOLE = ("config.json", MANIFEST_FILE, STATE_FILE, "tokenizer.json", SIDECAR, TEXT_SIDECAR)
TOKENIZER = "tokenizer"  # its name among a run's fingerprints
CAPTIONS, MATCHING, RETRIEVAL = "captions", "matching", "retrieval"
WHAT_TO_GIVE = "Give a run's --output_dir, one of its checkpoints or an export."
# The largest sizes of a configuration: nothing of ours comes near, and more would be built for hours.
_MOST = 10_000_000
_MOST_OF = {"num_layers": 1000, "num_hidden_layers": 1000, "compressor_convolutions": 1000, "image_size": 16_384}
# What an export keeps of the settings of its training: enough to say what the model never learned, and what evaluation
# weighs its scores by.
# The last say which built-in scenes it never saw, and how it was taught to answer about them.
_KEPT_SETTINGS = (
    *("contrastive_weight", "itm_weight", "text_loss_weight", "temperature", "itm_temperature"),
    *("seed", "scenes_val", "rationale", "question_data", "max_objects", "max_hops", "picture_shown"),
)


class Trained(NamedTuple):
    """A trained model in eval mode, and all that goes with it.

    ``config``: what it was trained with; of an export its objective alone, the rest are defaults.
    ``processor``: images and texts to the model's inputs, as in training.
    ``folder``: of the checkpoint or export itself.
    ``temperature``: of the contrastive loss, as the training left it.
    ``untrained``: what the model never learned (``captions``, ``matching``, ``retrieval``), each with a sentence that
    says so. Empty for exports that do not know.
    """

    model: BitGenModel
    config: Config
    tokenizer: PreTrainedTokenizerBase
    processor: BitGenProcessor
    folder: Path
    kind: Literal["checkpoint", "export"]
    untrained: dict[str, str]
    temperature: float

    def require(self, what: str) -> None:
        """Refuse to use the model for something that it never learned.

        Raises:
            ConfigError: with the sentence of ``untrained``.
        """
        if what in self.untrained:
            raise ConfigError(f"{self.folder}: {self.untrained[what]}. Take a model that was trained for it.")


def open_model(path: str | Path, device: torch.device | str = "cpu") -> Trained:
    """The model of a run's folder (its ``best``, else its newest checkpoint), of one checkpoint or of an export.

    Every file of a checkpoint is compared with what was written; the averaged weights are taken where there are some.
    The code that an export brings is not run.

    Raises:
        CheckpointError: there is no model, or it is damaged or incomplete; the message names the folder and the remedy.
        ConfigError: the tokenizer beside the model is not the one that it was trained with.
    """
    path = Path(path)
    if not path.is_dir():
        problem = "this is a file" if path.exists() else "there is no such folder"
        raise CheckpointError(f"{path}: {problem}. {WHAT_TO_GIVE}")
    if is_model_folder(path):
        return _open_export(path, torch.device(device))
    lost_its_manifest = (path / STATE_FILE).is_file() or step_of(path) is not None
    if not lost_its_manifest and not checkpoint_folders(path) and not (path / MANIFEST_FILE).is_file():
        raise CheckpointError(f"{path} holds no trained model. {WHAT_TO_GIVE}")
    return _open_checkpoint(path.resolve() if lost_its_manifest else resolve_checkpoint(path), torch.device(device))


def is_model_folder(path: str | Path) -> bool:
    """Whether a folder holds a Hugging Face model, BitGen's or another, and not a run or one of its checkpoints."""
    path = Path(path)
    return (path / "config.json").is_file() and not any((path / name).is_file() for name in (MANIFEST_FILE, STATE_FILE))


def is_export(path: str | Path) -> bool:
    """Whether a folder is an exported BitGen model, whole or not."""
    return is_model_folder(path) and _model_type(Path(path)) == BitGenConfig.model_type


def holds_model_or_data(folder: Path) -> bool:
    """Whether a folder is one that a model, a tokenizer or a dataset was written into: its files are not to replace."""
    return any((folder / name).is_file() for name in _WRITTEN_WHOLE)


def kept_of_training(config: Config, temperature: float) -> dict[str, Any]:
    """What an export records of its training, in its ``config.json``; :func:`open_model` reads it."""
    flat = config.flat()
    kept = {name: flat[name] for name in _KEPT_SETTINGS}
    if kept["question_data"] not in BUILT_IN_QUESTIONS:  # a path, which says nothing elsewhere
        kept["question_data"] = None
    return kept | {"images": saw_pictures(config), "learned_temperature": temperature}


def saw_pictures(config: Config) -> bool:
    """Whether a model has seen pictures, with captions or with questions; what it started from may have."""
    asked = config.data.train_data is not None or config.reasoning.question_data is not None
    return asked or config.training.init_from is not None


# ---- runs and checkpoints ----


def _open_checkpoint(folder: Path, device: torch.device) -> Trained:
    try:
        files = CheckpointFiles(folder)
        config = Config.loads(files.read("config.yaml"), folder / "config.yaml")
        sizes = parse_json(files.read("config.json"), dict)
        _check_sizes(sizes)
        model_config = BitGenConfig(**sizes)
        model = BitGenModel(model_config)
        load_weights(model, files, model.base_names(), averaged=True)
        state = read_state(files, lazily=True).state
        files.compare_rest()
        temperature = _temperature(state, config)
    except DamagedCheckpoint as error:
        raise DamagedCheckpoint(
            f"{folder} is damaged: {str(error).rstrip('.')}. Give another checkpoint of {folder.parent}, or restore "
            "it from a copy."
        ) from error
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise CheckpointError(
            f"{folder} cannot be used: {str(error).rstrip('.')}. Give another checkpoint, or use the BitGen that wrote "
            "it."
        ) from error
    model.set_adapters_trainable(False)
    tokenizer = _run_tokenizer(folder, model_config, config, state.get("fingerprints", {}).get(TOKENIZER))
    model_config.bos_token_id = tokenizer.bos_token_id  # which files of earlier runs do not say
    know_words(model_config, tokenizer)
    processor = BitGenProcessor(
        tokenizer,
        model_config.image_size,
        model_config.max_seq_len,
        max_image_pixels=config.data.max_image_pixels,
        **model_config.normalisation,
    )
    untrained = _untrained(kept_of_training(config, temperature))
    return Trained(model.eval().to(device), config, tokenizer, processor, folder, "checkpoint", untrained, temperature)


def _temperature(state: dict[str, Any], config: Config) -> float:
    """Of the contrastive loss, as a checkpoint has it; where there is none, what the configuration says."""
    learned = state.get("objective", {}).get("log_temperature")
    return config.objective.temperature if learned is None else learned.exp().item()


def _run_tokenizer(
    folder: Path, model_config: BitGenConfig, config: Config, fingerprint: str | None
) -> PreTrainedTokenizerBase:
    """The tokenizer that a run keeps, refused where it is not the one whose ids the embeddings were trained for.

    Checkpoints from before tokenizers had a ``fingerprint`` are judged by sizes. Training allows a loaded tokenizer
    that is smaller than ``vocab_size``; then the folder's own record of what was loaded must agree with the run's
    configuration.
    """
    where, spec = folder.parent / TOKENIZER_FOLDER, config.data.tokenizer
    if not where.is_dir():
        raise CheckpointError(
            f"{folder} has no tokenizer: {where} is missing. A checkpoint stays in its run's folder; put it back there."
        )
    tokenizer = load_tokenizer(where)
    if fingerprint is not None and tokenizer_sha256(tokenizer) != fingerprint:
        raise ConfigError(
            f"the tokenizer in {where} is not the one that the model was trained with: tokens would stand for others. "
            "Put that one back."
        )
    has, needs = vocabulary_size(tokenizer), model_config.vocab_size
    if has > needs or (fingerprint is None and has < needs and (spec == "train" or kept_spec(where) != spec)):
        raise ConfigError(
            f"the tokenizer in {where} has {has:,} tokens and the checkpoint's vocabulary {needs:,}: it is not "
            "the one that the model was trained with. Put that one back."
        )
    return tokenizer


# ---- exports ----


def _open_export(folder: Path, device: torch.device) -> Trained:
    if not is_export(folder):
        kind = _model_type(folder) or "no model_type"
        raise CheckpointError(f"{folder} is no exported model of BitGen ({kind} in its config.json). {WHAT_TO_GIVE}")
    try:
        _check_export_files(folder)
        with _unchanged(folder):
            parts = BitGenAutoProcessor.from_pretrained(folder)
            # Safetensors alone: what else transformers would look for is unpickled.
            model, report = BitGenForCausalLM.from_pretrained(
                folder,
                dtype=torch.float32,
                output_loading_info=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # refused below, by name
            )
        if others := sorted(report["mismatched_keys"]):
            name, there, here = others[0]
            raise ValueError(
                f"{name} is {list(there)} there and {list(here)} here: another release of BitGen may have written it, "
                "and can open it"
            )
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"it lacks {len(missing)} weights, first {missing[0]}, which would be random")
        config, seen = model.config, parts.image_processor
        normalisation = config.normalisation
        if seen is not None:
            normalisation = seen.normalisation | {"max_image_pixels": seen.max_image_pixels}
        processor = BitGenProcessor(parts.tokenizer, config.image_size, config.max_seq_len, **normalisation)
        kept = getattr(config, "trained_with", None)
        settings = {name: kept[name] for name in _KEPT_SETTINGS if name in kept} if kept is not None else {}
        trained_with = Config().replace(itm_likelihood=config.itm_likelihood, **settings)
        untrained = _untrained(kept) if kept is not None else {}
        temperature = float((kept or {}).get("learned_temperature", trained_with.objective.temperature))
    except BaseException as error:  # transformers, safetensors and torch raise many kinds; tokenizers in Rust its own
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = printable(next(iter(str(error).splitlines()), type(error).__name__), 300)
        raise DamagedCheckpoint(
            f"{folder} is a damaged or incomplete export ({reason}). Export the model again, or restore it from a copy."
        ) from error
    check_vocabulary(parts.tokenizer, config, folder)
    know_words(config, parts.tokenizer)
    return Trained(
        model.eval().to(device), trained_with, parts.tokenizer, processor, folder, "export", untrained, temperature
    )


def _check_export_files(folder: Path) -> None:
    """What transformers would end on without naming the file, or would build whatever its size is.

    Raises:
        ValueError: a file is missing or no JSON object, or a size is beyond every model.
    """
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "config.json"):
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        try:
            content = read_json(path, dict)
        except BadJson as error:
            raise ValueError(f"{name}: {error}") from error
    if not any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        raise ValueError("model.safetensors is missing")
    _check_sizes(content)


@contextmanager
def _unchanged(folder: Path) -> Iterator[None]:
    """Compare an export's files with its checksums, and see that they are the same files when the block ends: then what
    was loaded in it by their names is what was compared.

    Raises:
        ValueError: a file is another one.
    """
    checksums = read_json(folder / CHECKSUMS, dict) if (folder / CHECKSUMS).exists() else {}  # earlier ones have none
    with ExitStack() as opened:
        files = []
        for name, expected in checksums.items():
            path = inside(folder, name)
            found = opened.enter_context(held(path, copied=False))
            if found.sha256 != expected:
                raise ValueError(
                    f"{printable(name, 60)} is not what was exported; delete {CHECKSUMS} if you changed it"
                )
            files.append((path, found.name))
        yield
        for path, name in files:
            if not os.path.samefile(path, name):
                raise ValueError(f"{printable(path.name, 60)} was replaced while it was read; open the export again")


def _check_sizes(config: dict[str, Any]) -> None:
    """Refuse a ``config.json`` from which something would be built that no machine holds.

    Raises:
        ValueError: a size is beyond every model.
    """
    vision = config.get("vision_config")
    for name, value in [*config.items(), *(vision.items() if isinstance(vision, dict) else ())]:
        most = _MOST_OF.get(name, _MOST)
        if isinstance(value, (int, float)) and abs(value) > most:
            raise ValueError(f"config.json: {printable(name, 40)} is {value}, beyond {most:,}")


def _model_type(folder: Path) -> str | None:
    try:
        kind = read_json(folder / "config.json", dict).get("model_type")
    except (OSError, BadJson):
        return None
    return printable(kind, 40) if isinstance(kind, str) else None


# ---- what was never learned ----


def _untrained(kept: dict[str, Any]) -> dict[str, str]:
    """By what :func:`kept_of_training` gives; what it leaves out counts as learned."""
    if not kept.get("images", True):
        blind = "the run had no pairs (train_data was none): the model has never seen an image"
        return dict.fromkeys((CAPTIONS, MATCHING, RETRIEVAL), blind)
    sentences = {
        CAPTIONS: (
            "text_loss_weight",
            "text_loss_weight was 0 in training: the model never learned to write, its captions and their scores mean "
            "nothing",
        ),
        MATCHING: (
            "itm_weight",
            "itm_weight was 0 in training: the matching head is untrained, its figures mean nothing",
        ),
        RETRIEVAL: (
            "contrastive_weight",
            "contrastive_weight was 0 in training: images and texts were never brought together, their similarities "
            "mean nothing",
        ),
    }
    return {what: sentence for what, (weight, sentence) in sentences.items() if not kept.get(weight, 1.0)}
