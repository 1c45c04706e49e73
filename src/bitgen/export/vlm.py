"""Exporting a vision-language model of parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitgen.config import ConfigError
from bitgen.export.llava import write_llava
from bitgen.export.target import checked_target
from bitgen.export.vlm_folder import write_vlm_folder
from bitgen.export.vlm_merge import has_adapters, merged
from bitgen.machine.files import replacing_folder
from bitgen.trained_vlm import open_vlm

BITGEN, LLAVA = "bitgen", "llava"
LAYOUTS = (BITGEN, LLAVA)


def export_vlm(checkpoint: str, output: str, merge_lora: bool, layout: str, metrics: dict[str, Any]) -> Path:
    """Write the model of a run, a checkpoint or an export into ``output``, which appears whole or not at all.

    Args:
        merge_lora: fold adapters into encoder and language model, which then lie in the folder.
        layout: ``bitgen``: the model's own parts (:mod:`bitgen.vlm.folder`); ``llava``: all of it, for transformers.

    Raises:
        ConfigError: ``output`` is not empty or cannot be written; the checkpoint is missing or damaged; adapters cannot
            be merged; the layout would lose something.
    """
    target = checked_target(output)
    try:
        trained = open_vlm(checkpoint)
    except ValueError as error:
        raise ConfigError(f"--checkpoint {error}") from error
    if merge_lora or layout == LLAVA:  # which has no place for adapters
        if has_adapters(trained):
            try:
                trained = merged(trained)
            except ValueError as error:
                asked = "--merge_lora True" if merge_lora else "--format llava, which adapters must be merged for"
                raise ConfigError(f"{asked}: {error}.") from error
        elif merge_lora:
            raise ConfigError(f"--merge_lora True: {trained.folder} has no adapters to merge. Leave the flag out.")
    try:
        with replacing_folder(target, replace=False) as folder:
            if layout == LLAVA:
                write_llava(trained, folder, metrics)
            else:
                write_vlm_folder(trained, folder, metrics)
    except ValueError as error:
        raise ConfigError(f"--checkpoint {checkpoint}: {error}") from error
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot write there ({error.strerror or error}).") from error
    return target
