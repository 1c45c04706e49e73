"""Export a checkpoint: a folder that transformers loads without this repository, and the hub."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from huggingface_hub.utils import validate_repo_id

from bitgen.config import ConfigError, exit_on_config_error
from bitgen.export.hub import push_to_hub
from bitgen.export.revisions import export_run, read_results
from bitgen.export.vlm import BITGEN, LAYOUTS, export_vlm
from bitgen.guards.arguments import Parser
from bitgen.guards.flags import boolean
from bitgen.guards.printable import printable
from bitgen.show.bars import bars_on_terminals_alone
from bitgen.trained_vlm import is_vlm

logger = logging.getLogger("export")

_HELP = """\
Write a checkpoint as a Hugging Face folder: AutoModelForCausalLM, AutoModel, AutoProcessor and AutoConfig load it with
trust_remote_code=True. It holds safetensors, tokenizer, image processor, generation settings, the model's code and a
model card, and needs nothing of this repository.

What is exported is what the checkpoint holds: the averaged weights where the run kept them (ema_decay,
average_last), the memory's running state, and in phase 1 adapters that change nothing yet. The model card says which
phase it was.

Of a vision-language model of parts (src/train_vlm.py) the folder holds the connector, the adapters as peft saves them,
the parts that are its own, and the names and hashes of the others, which are not copied. docs/vlm.md says more."""


def parse_flags(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument(
        "--checkpoint", required=True, metavar="PATH", help="a run's --output_dir (its best, else newest) or one folder"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="a folder that is empty or not there yet")
    parser.add_argument(
        "--merge_lora",
        type=boolean,
        default=False,
        metavar="BOOL",
        help="fold the LoRA adapters into the weights: same outputs, and loading needs no peft (default: False)",
    )
    parser.add_argument(
        "--format",
        default=BITGEN,
        choices=LAYOUTS,
        help="of a vision-language model of parts: bitgen, or llava: transformers' LlavaForConditionalGeneration with "
        "all of it merged, for an encoder of CLIP, SigLIP or DINOv2 and a connector mlp (default: bitgen)",
    )
    parser.add_argument(
        "--words_seen_checkpoints",
        type=boolean,
        default=False,
        metavar="BOOL",
        help="export the run's chck_1M, chck_2M ... too, into folders of these names in --output (default: False)",
    )
    parser.add_argument("--results", metavar="FILE", help="JSON of src/evaluate.py, for the model card")
    parser.add_argument(
        "--push_to_hub",
        metavar="REPO",
        help="upload to this repository (USER/NAME), in place of an export that it holds, one revision for each "
        "chck_*; log in with `hf auth login` first",
    )
    parser.add_argument(
        "--private",
        type=boolean,
        default=False,
        metavar="BOOL",
        help="into a private repository; refuses one that is public (default: False)",
    )
    return parser.parse_args(argv)


def _export(flags: argparse.Namespace, metrics: dict[str, Any]) -> Path:
    if not is_vlm(flags.checkpoint):
        if flags.format != BITGEN:
            raise ConfigError(
                f"--format {flags.format}: {flags.checkpoint} is no vision-language model of parts. Leave the flag out."
            )
        return export_run(flags.checkpoint, flags.output, flags.merge_lora, flags.words_seen_checkpoints, metrics)
    if flags.words_seen_checkpoints:
        raise ConfigError(
            f"--words_seen_checkpoints True: {flags.checkpoint} is a vision-language model of parts, whose checkpoints "
            "are exported one by one. Leave the flag out, and name one as --checkpoint RUN/chck_1M."
        )
    return export_vlm(flags.checkpoint, flags.output, flags.merge_lora, flags.format, metrics)


def main(argv: list[str] | None = None) -> None:
    """Read the flags, export, and upload where asked to."""
    flags = parse_flags(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    bars_on_terminals_alone()
    with exit_on_config_error():
        try:
            if flags.push_to_hub:
                validate_repo_id(flags.push_to_hub)
            metrics = read_results(flags.results)
            folder = _export(flags, metrics)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        logger.info("exported to %s", folder)
        if flags.push_to_hub:
            try:
                push_to_hub(folder, flags.push_to_hub, flags.private)
            except Exception as error:  # no network, no right to write, no such name: the hub raises many kinds
                raise ConfigError(
                    f"--push_to_hub {flags.push_to_hub}: {printable(error)}. The export itself is whole in {folder}."
                ) from error
            logger.info("uploaded to %s", flags.push_to_hub)
