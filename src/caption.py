"""Describe images with an exported model: `python src/caption.py IMAGE... --model DIR` prints a caption for each."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from bitgen.config import ConfigError, exit_on_config_error
from bitgen.evaluation.generation import LONGEST, generate_texts, load_export
from bitgen.model.auto_processing_bitgen import BitGenAutoProcessor
from bitgen.model.causal_lm_bitgen import BitGenForCausalLM


def parse_flags(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--model", required=True, metavar="DIR", help="a folder that src/export.py wrote")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="what each caption begins with")
    parser.add_argument(
        "--num_beams", type=int, default=3, metavar="N", help="beams of the search; 1: greedy (default: 3)"
    )
    parser.add_argument(
        "--max_new_tokens", type=int, default=LONGEST, metavar="N", help=f"longest caption (default: {LONGEST})"
    )
    flags = parser.parse_args(argv)
    for name in ("num_beams", "max_new_tokens"):
        if getattr(flags, name) < 1:
            parser.error(f"--{name} is {getattr(flags, name)}; it must be at least 1")
    return flags


def load_captioner(folder: str) -> tuple[BitGenForCausalLM, BitGenAutoProcessor]:
    """Model and processor of an exported folder; its own code is not run.

    Raises:
        ConfigError: it is no export, is incomplete, or its model takes features instead of images.
    """
    try:
        model, processor = load_export(folder)
    except ValueError as error:
        raise ConfigError(f"--model {error}") from error
    if model.config.takes_features:
        raise ConfigError(
            f"--model {folder} was trained on features computed earlier and has no vision tower: it cannot look at "
            "image files. Give its generate() vision_features, or train on images."
        )
    return model, processor


def caption(
    model: BitGenForCausalLM,
    processor: BitGenAutoProcessor,
    image: bytes,
    prompt: str = "",
    num_beams: int = 3,
    max_new_tokens: int = LONGEST,
) -> str:
    """The caption of one encoded image, the prompt included.

    Raises:
        ValueError: the bytes are no image, or the prompt is as long as the context.
    """
    pixel_values = processor.image_processor(image)["pixel_values"]
    written = generate_texts(model, processor.tokenizer, [prompt], num_beams, max_new_tokens, pixel_values=pixel_values)
    return f"{prompt}{written[0]}".strip()


@torch.inference_mode()
def main(argv: list[str] | None = None) -> None:
    """Print ``file<TAB>caption`` for each image; those that cannot be read are named at the end."""
    flags = parse_flags(argv)
    problems = []
    with exit_on_config_error():
        model, processor = load_captioner(flags.model)
        for path in flags.images:
            try:
                text = caption(
                    model, processor, Path(path).read_bytes(), flags.prompt, flags.num_beams, flags.max_new_tokens
                )
            except (OSError, ValueError) as error:
                problems.append(f"{path}: {error}")
                continue
            print(f"{path}\t{text}", flush=True)
        if problems:
            raise ConfigError("; ".join(problems))


if __name__ == "__main__":
    sys.exit(main())
