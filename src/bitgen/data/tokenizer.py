"""Tokenizers: GPT-2's files, any Hugging Face fast tokenizer, or a byte-level BPE trained at first start."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bitgen.data.text_shards import tokenizer_sha256
from bitgen.guards.json_files import BadJson, check_keys, read_json
from bitgen.guards.printable import printable
from bitgen.machine.files import replacing_folder
from bitgen.machine.hub import hub_answers

logger = logging.getLogger(__name__)

GPT2_SPECIAL = "<|endoftext|>"
TRAINED_SPECIALS = ("<s>", "</s>", "<pad>")
_TRAINING_FILE = "bitgen_tokenizer.json"
_ALPHABET = 256
_TAKEN_OVER = ""  # in place of the sha256 of the captions that a tokenizer was trained on


def build_tokenizer(
    spec: str, captions: Iterable[str] | None, vocab_size: int, folder: str | Path | None
) -> PreTrainedTokenizerFast:
    """Loads or trains the tokenizer that ``spec`` names, with BOS, EOS and pad set, and keeps a copy in ``folder``.

    Args:
        spec: ``"train"`` (byte-level BPE on ``captions``, or the one that ``folder`` holds already), a local folder
            (``tokenizer.json``, or GPT-2's ``vocab.json`` + ``merges.txt``), or a hub id such as ``gpt2``.
        captions: text to train on; needed for ``"train"`` at first start only.
        vocab_size: of the model; a trained tokenizer gets at most as many tokens, a loaded one must fit.
        folder: where the tokenizer of this run is kept; None keeps nothing.

    Several processes may call this at once with the same arguments: they end with the same tokenizer, and the folder
    appears whole or not at all. Raises ``ValueError`` saying what is missing and what to write instead.
    """
    folder = Path(folder) if folder is not None else None
    if spec == "train":
        return _train_once(captions, vocab_size, folder)
    tokenizer = load_tokenizer(spec)
    if (size := vocabulary_size(tokenizer)) > vocab_size:
        gaps = f" whose largest id is {size - 1}" if size > len(tokenizer) else ""
        raise ValueError(
            f"tokenizer {spec} has {len(tokenizer)} tokens{gaps} but vocab_size is {vocab_size}: "
            f"use --vocab_size {size}"
        )
    # Left alone where it is the same: a run that resumes must not lose its tokenizer to a crash at this point.
    if folder is not None and not (kept_meta(folder).get("spec") == spec and _same_when_kept(tokenizer, folder)):
        keep_tokenizer(tokenizer, folder, {"spec": spec}, replace=True)
    return tokenizer


def load_tokenizer(spec: str | Path) -> PreTrainedTokenizerFast:
    """Loads a fast tokenizer from a local folder or the hub, with BOS, EOS and pad set (pad falls back to EOS)."""
    path = Path(spec)
    if path.is_dir():
        if not (path / "tokenizer.json").is_file() and (path / "vocab.json").is_file():
            return _load_gpt2_files(path)
        if not (path / "tokenizer.json").is_file():
            raise ValueError(
                f"tokenizer folder {path} holds neither tokenizer.json nor vocab.json + merges.txt: give a folder that "
                "does, or --tokenizer train"
            )
    elif path.is_absolute() or str(spec).startswith((".", "~")) or str(spec).count("/") > 1:
        raise ValueError(f"tokenizer folder {spec} does not exist: give one that does, or --tokenizer train")
    try:
        tokenizer = _from_pretrained(str(spec))
    except Exception as error:  # offline, no such repository, damaged files: transformers and the hub raise many kinds
        reason = printable(next(iter(str(error).splitlines()), "no reason given"), 200)
        raise ValueError(
            f"cannot load tokenizer {spec!r} ({type(error).__name__}: {reason}): "
            "where the hub cannot be reached, download it elsewhere (for gpt2: vocab.json and merges.txt), "
            "pass its folder with --tokenizer FOLDER, or use --tokenizer train"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"tokenizer {spec!r} has no fast version (tokenizer.json); choose one that has")
    return _with_specials(tokenizer, str(spec))


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many embeddings its ids need: the largest id and one. ``len()`` counts tokens, and ids may have gaps."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, folder: str | Path) -> None:
    """Refuse a tokenizer that is not the size of the one the model beside it was trained with.

    An export's configuration records that size (``tokenizer_size``; exports made earlier counted the tokens, which
    differs where ids have gaps). Other models often have more embeddings than their tokenizer has tokens: there only
    one with tokens beyond the embeddings is known to be another model's.

    Raises:
        ValueError: with both sizes.
    """
    needs, size = getattr(config, "tokenizer_size", None), vocabulary_size(tokenizer)
    fits = size <= config.vocab_size and needs in (None, size, len(tokenizer))
    if not fits:
        raise ValueError(
            f"the tokenizer in {folder} has {size:,} tokens and the model's vocabulary "
            f"{needs or config.vocab_size:,}: it is not the one that the model was trained with. Put that one back."
        )


def _from_pretrained(spec: str) -> PreTrainedTokenizerFast:
    try:
        return AutoTokenizer.from_pretrained(spec, local_files_only=True, trust_remote_code=False)
    except Exception:  # a folder has no second chance; a hub id may not be in the cache yet
        if Path(spec).is_dir() or not hub_answers():
            raise
    return AutoTokenizer.from_pretrained(spec, trust_remote_code=False)


def _load_gpt2_files(folder: Path) -> PreTrainedTokenizerFast:
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if not merges.is_file():
        raise ValueError(f"tokenizer folder {folder} holds vocab.json but no merges.txt; put both there")
    try:
        bpe = models.BPE.from_file(str(vocab), str(merges))
    except Exception as error:  # the Rust library raises plain Exception
        raise ValueError(
            f"tokenizer files in {folder} are damaged ({printable(error, 200)}); download them again"
        ) from error
    tokenizer = Tokenizer(bpe)
    if tokenizer.token_to_id(GPT2_SPECIAL) is None:
        raise ValueError(f"{vocab} has no {GPT2_SPECIAL} token; use a folder with tokenizer.json instead")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=GPT2_SPECIAL,
        eos_token=GPT2_SPECIAL,
        pad_token=GPT2_SPECIAL,
        unk_token=GPT2_SPECIAL,
        clean_up_tokenization_spaces=False,
    )


def _with_specials(tokenizer: PreTrainedTokenizerFast, spec: str) -> PreTrainedTokenizerFast:
    eos = tokenizer.eos_token or getattr(tokenizer, "sep_token", None)
    if eos is None:
        raise ValueError(f"tokenizer {spec!r} has neither an EOS nor a SEP token; choose one that has")
    tokenizer.eos_token = eos
    tokenizer.bos_token = tokenizer.bos_token or getattr(tokenizer, "cls_token", None) or eos
    tokenizer.pad_token = tokenizer.pad_token or eos
    return tokenizer


def train_bpe(captions: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE of at most ``vocab_size`` tokens; ``<s> </s> <pad>`` are ids 0, 1, 2.

    The same captions give the same tokenizer, in whatever process. Every string round-trips: all 256 bytes are tokens.
    """
    least = _ALPHABET + len(TRAINED_SPECIALS)
    if vocab_size < least:
        raise ValueError(f"vocab_size is {vocab_size}; a byte-level tokenizer needs at least {least}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(TRAINED_SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    bos, eos, pad = TRAINED_SPECIALS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        clean_up_tokenization_spaces=False,
    )


def take_over(tokenizer: PreTrainedTokenizerFast, vocab_size: int, folder: Path) -> PreTrainedTokenizerFast:
    """Keep in ``folder``, of a run whose ``spec`` is ``"train"``, the tokenizer of the model that the run starts from.

    Raises:
        ValueError: it has more tokens than ``vocab_size``.
    """
    if (size := vocabulary_size(tokenizer)) > vocab_size:
        raise ValueError(
            f"the model of init_from has a tokenizer of {size} tokens but vocab_size is {vocab_size}: "
            f"use --vocab_size {size}"
        )
    record = {"spec": "train", "vocab_size": vocab_size, "sha256": _TAKEN_OVER}
    if not (_same_when_kept(tokenizer, folder) and kept_meta(folder) == record):
        keep_tokenizer(tokenizer, folder, record, replace=True)
    return tokenizer


def _train_once(captions: Iterable[str] | None, vocab_size: int, folder: Path | None) -> PreTrainedTokenizerFast:
    if folder is not None and (folder / _TRAINING_FILE).is_file():
        return _reuse(captions, vocab_size, folder)
    if captions is None:
        where = f"{folder} holds none yet" if folder is not None else "no folder was given to load it from"
        raise ValueError(f"--tokenizer train needs captions to train on, and {where}")
    digest = _CaptionDigest()
    tokenizer = train_bpe(digest.through(captions), vocab_size)
    if digest.count == 0:
        raise ValueError("--tokenizer train needs captions to train on, but the training data has none")
    logger.info("trained a byte-level BPE of %d tokens on %d captions", len(tokenizer), digest.count)
    if folder is not None:
        meta = {"spec": "train", "vocab_size": vocab_size, "captions": digest.count, "sha256": digest.hexdigest()}
        keep_tokenizer(tokenizer, folder, meta, replace=False)
    return tokenizer


def _reuse(captions: Iterable[str] | None, vocab_size: int, folder: Path) -> PreTrainedTokenizerFast:
    meta = kept_meta(folder)
    remedy = f"remove {folder} to train anew, or use another --output_dir"
    if meta.get("spec") != "train":
        raise ValueError(
            f"{folder} holds the tokenizer {meta.get('spec')!r} of an earlier run, not a trained one: {remedy}"
        )
    try:
        check_keys(meta, {"vocab_size": int, "sha256": str})
    except BadJson as error:
        raise ValueError(f"{folder / _TRAINING_FILE} is damaged ({error}): {remedy}") from error
    if meta["vocab_size"] != vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} was trained with vocab_size {meta['vocab_size']}, not {vocab_size}: {remedy}"
        )
    if captions is not None and meta["sha256"] != _TAKEN_OVER:
        digest = _CaptionDigest()
        for _ in digest.through(captions):
            pass
        if digest.hexdigest() != meta["sha256"]:
            logger.warning("the tokenizer in %s was trained on other captions than today's; %s", folder, remedy)
    return load_tokenizer(folder)


def is_kept(spec: str, folder: Path) -> bool:
    """Whether the tokenizer that ``spec`` names is the very one that a run keeps in ``folder``.

    Raises:
        ValueError: one of them cannot be loaded.
    """
    return _same_when_kept(load_tokenizer(spec), folder)


def _same_when_kept(tokenizer: PreTrainedTokenizerFast, folder: Path) -> bool:
    """Compared as it would be kept: what a library writes of some tokenizers is not quite what it was given."""
    if not folder.is_dir():
        return False
    with tempfile.TemporaryDirectory() as saved:
        tokenizer.save_pretrained(saved)
        return tokenizer_sha256(load_tokenizer(saved)) == tokenizer_sha256(load_tokenizer(folder))


def kept_spec(folder: Path) -> str | None:
    """What the tokenizer that a run keeps in ``folder`` was loaded from (``train``: trained); None: not recorded."""
    return kept_meta(folder).get("spec")


def kept_meta(folder: Path) -> dict:
    """What is recorded of the tokenizer that a run keeps in ``folder``; empty: nothing.

    Raises:
        ValueError: the record is damaged.
    """
    try:
        meta = read_json(folder / _TRAINING_FILE, dict, {"spec": str})
        if meta["spec"] == "train":
            check_keys(meta, {"vocab_size": int, "sha256": str})
    except FileNotFoundError:
        return {}
    except (OSError, BadJson) as error:
        raise ValueError(f"{folder / _TRAINING_FILE} is damaged ({printable(error)}); remove {folder}") from error
    return meta


class _CaptionDigest:
    """Hash and number of the captions that pass through it."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.count = 0

    def through(self, captions: Iterable[str]) -> Iterator[str]:
        for caption in captions:
            self._hash.update(caption.encode("utf-8") + b"\0")
            self.count += 1
            yield caption

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def keep_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path, meta: dict, replace: bool = False) -> None:
    """Saves the tokenizer so that ``folder`` is whole at any moment; another process may be doing the same."""
    try:
        with replacing_folder(folder, replace) as new:
            tokenizer.save_pretrained(str(new))
            (new / _TRAINING_FILE).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        another_was_first = error.errno in (errno.ENOTEMPTY, errno.EEXIST) and (folder / _TRAINING_FILE).is_file()
        if not another_was_first:
            raise
