"""The `bitgen` command: `bitgen train`, `bitgen evaluate` ... are the scripts in `src/`, wherever BitGen is installed.

Nothing heavy is imported before the command is known: `bitgen --help` answers at once, and a command can set the
environment that torch reads when it is imported.
"""

from __future__ import annotations

import difflib
import importlib
import sys

from bitgen import __version__

COMMANDS = {
    "train": "train a model on images and captions, text, or both",
    "evaluate": "measure retrieval, matching, captions, memory or the BabyLM sets of a trained model",
    "train-vlm": "train a vision encoder, a connector and a language model with adapters, stage by stage",
    "train-reasoning": "train a captioner to answer questions with rationales and boxes (stage 2)",
    "caption": "describe image files",
    "ask": "ask a model about pictures and videos (which models: bitgen ask --help)",
    "memory": "teach a trained model pictures and sentences, in one shot, and recall, edit or forget them",
    "demo": "play with a trained model in the browser",
    "export": "write a folder that transformers loads without BitGen, and upload it",
    "submit": "evaluate an export and its checkpoints on BabyLM's sets, and collate a submission",
    "lora-report": "what adapters of a language model cost at each rank, and the spectrum of weights and adapters",
    "compare-vlms": "train several recipes of models of parts, and compare scores, sizes, time and memory",
    "adapters": "fold a LoRA or DoRA adapter into its base, or take it out again",
}

_HELP = """\
usage: bitgen COMMAND [...]

BitGen trains a tiny multimodal language model that sees, reads, remembers and writes.

commands:
{commands}

examples:
  bitgen train --config configs/quickstart.yaml
      train on built-in scenes in minutes: no data, no GPU, no download
  bitgen evaluate --checkpoint checkpoints/quickstart --data scenes
      how well it finds images by captions, and captions by images
  bitgen memory --model checkpoints/quickstart teach scenes/1.png "this is Rex"
  bitgen memory --model checkpoints/quickstart recall scenes/1.png
      the quickstart's model knows scenes alone; the repository's data_prep/scenes.py draws some as files
  bitgen ask --model checkpoints/vlm_llava/tune photo.jpg --question "What is it?"
  bitgen export --checkpoint checkpoints/quickstart --output my-model
  torchrun --nproc_per_node=8 -m bitgen train --use_ddp True --num_gpus 8 ...
      on eight GPUs

Wherever a trained model is asked for, the folder of a run, of one of its checkpoints, or of an export will do.
(`export` itself takes an export only of a model of parts.) `bitgen COMMAND --help` explains each command. `python -m
bitgen` is the same."""


def help_text() -> str:
    """What `bitgen --help` prints."""
    return _HELP.format(commands="\n".join(f"  {name:<16}{what}" for name, what in COMMANDS.items()))


def main(argv: list[str] | None = None) -> int | None:
    """Run the command that the arguments begin with; returns its exit status."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if name == "--version":
        print(f"bitgen {__version__}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Choose from {', '.join(COMMANDS)}."
        print(f"error: there is no command {name!r}. {hint} See bitgen --help.", file=sys.stderr)
        return 2
    # What argparse calls the program, and what a run prints as the command that resumes it.
    sys.argv = [f"bitgen {name}", *rest]
    return importlib.import_module(f"bitgen.commands.{name.replace('-', '_')}").main(rest)
