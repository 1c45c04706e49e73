"""Teach a trained model pictures, in one shot: `python src/memory.py --model DIR teach photo.jpg "this is Rex"`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from bitgen.config import ConfigError, exit_on_config_error
from bitgen.evaluation.generation import answer_of, caption_of
from bitgen.guards.arguments import Parser, add_device_flag
from bitgen.guards.printable import printable
from bitgen.guards.texts import MOST_CHARACTERS
from bitgen.machine.devices import choose_device
from bitgen.machine.files import check_writable
from bitgen.memory import EpisodicMemory, training_whitening
from bitgen.trained import Trained, open_model

logger = logging.getLogger(__name__)

_HELP = """\
Teach a trained model pictures with texts, recall them, change and forget them: each in one closed-form step, without
training. The model itself stays as it is; what it was taught is in a file of its own.

An episode is a picture with a text. A picture recalls by reading its text half from the memory, a text by reading the
image half; the episodes nearest to what was read are shown, best first:

  distance    of what was read from what the episode holds: 0.00 is the very picture (or text) that was taught; from
              about 0.5 on the memory knows nothing like it (with --whiten; without, strange pictures come nearer)
  id, text    of the episode

A model that was trained to speak from a memory (configs/memory_scenes.yaml) says what it was taught, in src/caption.py
and src/ask.py with --memory FILE too, and can be told sentences without a picture. Before the episodes recall writes
what the model says of the picture, or answers to the text, and which episodes it has that from, each with the
probability that the picture or text is about it; a picture must be the surer, the more facts there are. Of two
pictures of one thing the later is said, and of two sentences that differ in one word; of sentences that contradict each
other in other words either may be. Where teach notices it, it names the earlier one, to edit or forget.

A memory tells min(slots, width of the model's features) episodes apart for certain; with --widen as many as it has
slots. Beyond that it warns and says what to expect; --slots with teach makes a memory larger at any time."""

_EXAMPLES = """\
examples:
  python data_prep/scenes.py --output scenes
      draws pictures of the kind that the quickstart's model knows
  python src/memory.py --model checkpoints/quickstart teach scenes/1.png "this is Rex"
      prints the id of the new episode; the memory is in checkpoints/quickstart.memory
  python src/memory.py --model checkpoints/quickstart recall scenes/1.png
  python src/memory.py --model checkpoints/quickstart recall --text "this is Rex"
  python src/memory.py --model my-run teach --text "Blick belongs to Anna"
  python src/memory.py --model my-run recall --text "who owns Blick?"
      a model that speaks answers; `python src/caption.py photo.jpg --model my-run --memory my-run.memory` says Rex
  python src/memory.py --model checkpoints/quickstart edit 1 "this is Rex, who is five"
  python src/memory.py --model checkpoints/quickstart --memory pets.memory list
  python src/memory.py --model checkpoints/quickstart show --output memory.png
      the slots, the address of each episode, and how well the memory tells them apart
  python src/memory.py --model my-model --slots 512 --widen teach rex.jpg "this is Rex, our dog"
      a memory for up to 512 episodes
  python src/memory.py --model my-run --whiten teach rex.jpg "this is Rex, our dog"
      best for photographs: what was never taught then reads nothing like its text

docs/memory.md explains how it works and what it cannot do."""


def parse_flags(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    layout: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = Parser(description=_HELP, epilog=_EXAMPLES, **layout)
    _add_place(parser)
    _add_size(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    teach = commands.add_parser("teach", help="remember a picture with a text, or with --text a sentence alone")
    # Places that may be empty would end `teach IMAGE --id ID TEXT`: argparse fills them all at the first word.
    told = any(word.split("=")[0] == "--text" for word in (sys.argv[1:] if argv is None else argv))
    teach.add_argument("image", metavar="IMAGE", nargs="?" if told else None, help="an image file")
    teach.add_argument("text", metavar="TEXT", nargs="?" if told else None, help="what to remember of it")
    teach.add_argument(
        "--text", dest="told", metavar="TEXT", help="what to remember, in place of TEXT: without an IMAGE, a sentence"
    )
    teach.add_argument("--id", metavar="ID", help="what to call the episode (default: the next number)")
    recall = commands.add_parser("recall", help="what a picture or a text brings back")
    recall.add_argument("image", metavar="IMAGE", nargs="?", help="an image file")
    recall.add_argument("--text", metavar="TEXT", help="recall by a text instead of an image")
    recall.add_argument("--top_k", type=int, default=3, metavar="N", help="episodes to show (default: 3)")
    edit = commands.add_parser("edit", help="change the text of an episode")
    edit.add_argument("id", metavar="ID", help="as `list` shows it")
    edit.add_argument("text", metavar="TEXT", help="the new text")
    forget = commands.add_parser("forget", help="remove an episode, as if it had never been taught")
    forget.add_argument("id", metavar="ID", help="as `list` shows it")
    commands.add_parser("list", help="all episodes, and how full the memory is")
    show = commands.add_parser("show", help="draw the memory")
    show.add_argument("--output", required=True, metavar="FILE.png", help="where the picture goes")
    for command in commands.choices.values():  # what stands before the command may stand behind it as well
        _add_place(command, argument_default=argparse.SUPPRESS)
    _add_size(teach, argument_default=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    if flags.model is None:
        parser.error("the following arguments are required: --model")
    if flags.command == "teach" and flags.told is not None:
        if flags.text is not None:
            parser.error("teach takes TEXT or --text TEXT: give one of them")
        flags.text = flags.told
    if flags.command == "recall" and (flags.image is None) == (flags.text is None):
        parser.error("recall takes an IMAGE or --text TEXT: give one of them")
    if flags.command == "show" and not flags.output.lower().endswith(".png"):
        parser.error(f"--output {flags.output}: it is written as a PNG; give a name that ends in .png")
    if flags.widen and flags.slots is None:
        parser.error("--widen needs --slots: say how many episodes the memory is to hold")
    if flags.slots is not None and flags.command != "teach":
        parser.error("--slots changes the memory's size: give it with teach")
    if flags.whiten is not None and flags.command != "teach":
        parser.error("--whiten changes how all is held: give it with teach")
    return flags


def _add_place(parser: argparse.ArgumentParser, **default: Any) -> None:
    """Which memory of which model. ``argument_default``: of flags that are not given, in place of their own."""
    group = parser.add_argument_group("which memory", **default)
    group.add_argument("--model", metavar="DIR", help="a run's --output_dir, one checkpoint in it, or an export")
    group.add_argument("--memory", metavar="FILE", help="the memory's file (default: DIR.memory, beside the model)")
    add_device_flag(group, default.get("argument_default", "auto"))


def _add_size(parser: argparse.ArgumentParser, **default: Any) -> None:
    """How much a memory holds, and how."""
    group = parser.add_argument_group("with teach", **default)
    group.add_argument(
        "--slots", type=int, metavar="N", help="size of the memory, 1 to 4096 (default: as it is; new: 32)"
    )
    group.add_argument(
        "--widen",
        action="store_true",
        default=default.get("argument_default", False),
        help="with --slots: hold as many episodes as slots, beyond the width of the features; larger, slower, for good",
    )
    group.add_argument(
        "--whiten",
        action=argparse.BooleanOptionalAction,
        help="take out of all codes what the model's training pairs share, so that a picture that was never taught "
        "reads nothing like its text; needs a run or checkpoint (default: as it is; new: no)",
    )


def memory_file(flags: argparse.Namespace) -> Path:
    """Where the memory is: what --memory says, else beside the model's folder."""
    if flags.memory is not None:
        return Path(flags.memory)
    folder = Path(os.path.abspath(flags.model))
    return folder.with_name(folder.name + ".memory")


def opened(flags: argparse.Namespace) -> Trained:
    """The model that --model names, and all that goes with it.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    device = choose_device(flags.device)
    try:
        return open_model(flags.model, device)
    except ValueError as error:
        raise ConfigError(f"--model {error}") from error


def _row(*cells: str) -> str:
    """Cells with tabs between them; in a cell neither a tab nor the end of a line is itself."""
    return "\t".join(printable(cell, limit=MOST_CHARACTERS) for cell in cells)


def change(memory: EpisodicMemory, flags: argparse.Namespace, path: Path) -> None:
    """Teach, edit or forget in the memory's file, and say what was done."""
    with memory.editing(path):
        if flags.command == "teach":
            space = memory.codes.space
            widen = flags.widen or space.widen  # once widened, it stays so
            if flags.slots is not None and (space.slots, space.widen) != (flags.slots, widen):
                memory.resize(flags.slots, widen)
            if flags.whiten is not None and flags.whiten != (space.whitening is not None):
                memory.whiten(training_whitening(flags.model) if flags.whiten else None)
            keys = None if flags.id is None else [flags.id]
            if flags.image is None:
                [key] = memory.tell([flags.text], keys)
            else:
                [key] = memory.write([flags.image], [flags.text], keys)
            row = _row(key, flags.text)
        elif flags.command == "edit":
            memory.edit(flags.id, flags.text)
            row = _row(flags.id, flags.text)
        else:
            memory.forget(flags.id)
            row = _row(flags.id, "forgotten")
    print(row)  # after the file was saved


def said(memory: EpisodicMemory, trained: Trained, flags: argparse.Namespace) -> list[str]:
    """Rows of what the model says to the cue, and which episodes that is from."""
    if flags.image is None:
        spoken = memory.recalled(text=flags.text)
        try:
            text = answer_of(trained, flags.text, recalled=spoken.tokens)
        except ValueError as error:  # it is too long to be answered, and recalls what it recalls
            logger.warning("%s", error)
            text = ""
    else:
        [pixels] = memory.encoder.inputs([flags.image]).values()
        spoken = memory.recalled(image=pixels[0])
        text = caption_of(trained, pixels, recalled=spoken.tokens)
    rows = [_row("says", text)]
    rows += [_row("recalled", f"{sure:.0%}", episode.id, episode.text) for episode, sure in spoken.facts]
    return rows if spoken.facts else [*rows, _row("nothing like this was taught", f"{spoken.surest:.0%}")]


_UNSURE = (
    "A strange picture may come near, too: this memory cannot tell that nothing like it was taught. `teach --whiten` "
    "(of a run, not of an export) keeps strange photographs apart, and a model of configs/memory_scenes.yaml says when "
    "it knows nothing."
)


def look(memory: EpisodicMemory, trained: Trained, flags: argparse.Namespace) -> None:
    """Recall from a loaded memory, list it or draw it."""
    if flags.command == "recall":
        episodes = memory.recall(flags.image, flags.text, flags.top_k)
        for row in said(memory, trained, flags) if memory.speaks else []:
            print(row)
        if flags.image is not None and not memory.speaks and memory.codes.space.whitening is None:
            print(_UNSURE, file=sys.stderr)
        print("distance\tid\ttext")
        for found in episodes:
            print(_row(f"{found.distance:.2f}", found.id, found.text))
    elif flags.command == "list":
        print("id\ttaught\ttext")
        for episode in memory.episodes:
            print(_row(episode.id, episode.edited or episode.written, episode.text))
        state = memory.state()
        print(
            f"{state.episodes} of {state.capacity} episodes that {state.slots} slots tell apart; by their own image "
            f"{state.expected_recall[0]:.0%} are recalled first, by their own text {state.expected_recall[1]:.0%}"
            + ("" if state.expected_speech is None else f"; {state.expected_speech:.0%} can be said as taught"),
            file=sys.stderr,
        )
    else:
        from bitgen.memory.picture import write_picture  # with matplotlib, half a second

        write_picture(memory, flags.output)
        print(flags.output)


def main(argv: list[str] | None = None) -> None:
    """Do what one command line asks for."""
    flags = parse_flags(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    path = memory_file(flags)
    changes = flags.command in ("teach", "edit", "forget")
    with exit_on_config_error():
        try:
            if flags.command != "teach" and not os.path.lexists(path):
                raise ConfigError(
                    f"{printable(path)}: there is no memory yet. `teach` makes it, or name another with --memory."
                )
            if changes:
                check_writable(str(path))
            if flags.command == "show":
                if os.path.exists(flags.output) and os.path.samefile(path, flags.output):
                    raise ConfigError(f"--output {printable(flags.output)} is the memory itself. Give another name.")
                check_writable(flags.output)
            trained = opened(flags)
            memory = EpisodicMemory(trained.model, trained.processor)
            if changes:
                change(memory, flags, path)
            else:
                memory.load(path)
                look(memory, trained, flags)
        except ValueError as error:  # what a person asked for cannot be
            raise ConfigError(str(error)) from error
