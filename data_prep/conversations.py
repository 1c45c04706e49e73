"""Turns conversations about images or videos, in JSON, into a BitGen dataset of conversations.

Three layouts are understood, as a JSON list or as JSON lines (.jsonl), and may stand in one file: LLaVA's and Libra's
(`id`, `image` or `video`, and `conversations` of `from` human or gpt and `value`); OpenAI's (`messages` of `role` and
`content`, a text or a list of parts of type text, image and video); and questions (`question_id`, `image`, `text` and
`reference`, a text or a list of texts), as for evaluation.

In the user's texts <image> (or <video>) stands where a picture is shown. As many as there are images: each is shown at
its place. One for several images: it stands for all of them, such as a current image and the prior one. None in a
question: the images come first. Without images it is a conversation of text alone.

The names of files are relative to --images. DICOM files (.dcm) need pydicom, videos PyAV; of a video --frames pictures
are taken, from the first to the last at even distances. Each picture is stored once, however many conversations show
it.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from _common.conversation_json import File, Parsed, parse_entry
from _common.flags import add_image_flags, add_limit_flags, plain_parser, positive, run
from _common.images import check_image, read_image
from _common.problems import Problems, Unusable
from _common.reading import need_folder, read_json, read_json_lines, shown
from bitgen.data.captions import valid_unicode
from bitgen.data.conversations.writer import ConversationWriter, writing_conversations
from bitgen.data.dicom import DicomError, dicom_picture, is_dicom
from bitgen.data.sidecar import SIDECAR
from bitgen.data.video import VideoError, read_frames
from bitgen.data.whole_folder import check_output
from bitgen.guards.flags import check_ranges
from bitgen.guards.names import BadName, Outside, inside

logger = logging.getLogger("data_prep")

EXAMPLE = """\
  python data_prep/conversations.py --conversations llava_v1_5_mix665k.json --images images --output data/llava
  python data_prep/conversations.py --conversations libra_eval.jsonl --images mimic-cxr --output data/libra_val
with an entry such as
  {"id": "1", "image": ["now.png", "before.png"], "conversations": [
      {"from": "human", "value": "<image>\\nWhat has changed?"}, {"from": "gpt", "value": "Less effusion."}]}"""

_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:(//|.*;base64,)", re.DOTALL)
_MOST_FRAMES = 1000
_QUALITY = 95  # of the JPEGs that frames become; colours are kept at full resolution


class Media:
    """The files that conversations name, as encoded pictures in the table of a folder; each is read once."""

    def __init__(self, folder: Path | None, frames: int, check: bool, max_pixels: int) -> None:
        self.folder, self.frames, self.check, self.max_pixels = folder, frames, check, max_pixels
        self._rows: dict[File, list[int]] = {}
        self._unusable: dict[File, Unusable] = {}

    def rows(self, visuals: list[list[File]], writer: ConversationWriter) -> list[list[int]]:
        """Rows of the pictures of each visual. Raises ``Unusable``, adding no picture, when a file cannot be used."""
        read: dict[File, list[bytes]] = {}
        for file in (file for visual in visuals for file in visual):
            if file in self._unusable:
                raise self._unusable[file]
            if file in self._rows or file in read:
                continue
            try:
                read[file] = self._read(file)
            except Unusable as error:
                self._unusable[file] = error
                raise
        for file, payloads in read.items():
            self._rows[file] = [writer.picture(file.path, payload) for payload in payloads]
        return [[row for file in visual for row in self._rows[file]] for visual in visuals]

    def _read(self, file: File) -> list[bytes]:
        """The encoded pictures of a file: one, or the frames of a video."""
        if _ADDRESS.match(file.path):
            raise Unusable(
                "address in place of a file (download it into the folder of --images and write its name)", file.path
            )
        if self.folder is None:
            raise ValueError(f"the conversations name files such as {shown(file.path)}: add --images FOLDER")
        try:
            path = inside(self.folder, file.path)
        except Outside as error:
            raise Unusable("file name that leaves --images (write it relative to that folder)", str(error)) from error
        except BadName as error:
            raise Unusable("file name that cannot be used", str(error)) from error
        if not path.exists():
            raise Unusable(f"{file.kind} that is not in --images", file.path)
        try:
            return self._frames(path) if file.kind == "video" else [self._image(path)]
        except Unusable as error:
            detail = f"{file.path}: {error.detail}" if error.detail else file.path
            raise Unusable(error.reason, detail) from error

    def _image(self, path: Path) -> bytes:
        payload = read_image(path, False, self.max_pixels)
        if is_dicom(payload):
            try:
                picture = dicom_picture(payload, self.max_pixels)
            except DicomError as error:
                raise Unusable("DICOM file that cannot be used", str(error)) from error
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            return buffer.getvalue()
        if self.check:
            check_image(payload, self.max_pixels)
        return payload

    def _frames(self, path: Path) -> list[bytes]:
        try:
            pictures = read_frames(path, self.frames, self.max_pixels)
        except VideoError as error:
            raise Unusable("video that cannot be used", str(error)) from error
        encoded = []
        for picture in pictures:
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
            encoded.append(buffer.getvalue())
        return encoded


def read_entries(paths: list[Path]) -> list[tuple[str, dict]]:
    """``(where, entry)`` of every record of the files. Raises ``ValueError`` naming what is no list of objects."""
    entries: list[tuple[str, dict]] = []
    for path in paths:
        before = len(entries)
        if path.suffix == ".jsonl":
            lines = read_json_lines(path, "--conversations")
            entries += [(f"{path.name} line {number}", entry) for number, entry in lines]
        else:
            entries += list(_list_entries(path))
        if len(entries) == before:
            raise ValueError(f"--conversations {path} holds no conversation")
    return entries


def _list_entries(path: Path) -> Iterator[tuple[str, dict]]:
    content = read_json(path, "--conversations")
    if not isinstance(content, list):
        raise ValueError(
            f"--conversations {path} holds {shown(content)}, not a JSON list; where each line is an object, name the "
            "file .jsonl"
        )
    for position, entry in enumerate(content):
        if not isinstance(entry, dict):
            raise ValueError(f"--conversations {path}: [{position}] is {shown(entry)}, not an object")
        yield f"{path.name}[{position}]", entry


def write_entries(
    entries: list[tuple[str, dict]], media: Media, writer: ConversationWriter, problems: Problems
) -> None:
    """Writes every record that can be used, and counts the others. Raises ``ValueError`` when those are too many."""
    from tqdm import tqdm

    for where, entry in tqdm(entries, desc="writing", unit="conversation", disable=None):
        try:
            parsed: Parsed = parse_entry(entry, where)
            writer.add(parsed.id, media.rows(parsed.visuals, writer), parsed.turns, parsed.references)
            texts = [*(turn.text for turn in parsed.turns), *parsed.references]
            if any(valid_unicode(text) != text for text in texts):
                problems.add("text that is no valid Unicode (what is broken became U+FFFD)", where)
        except Unusable as error:
            problems.add(error.reason, f"{where} ({error.detail})" if error.detail else where, lost=True)
            problems.stop_if_too_many(len(entries))
    if writer.conversations == 0:
        raise ValueError("no conversation is left to write:\n  " + "\n  ".join(problems.lines()))


def main(argv: list[str] | None = None) -> None:
    """Reads the flags, writes the dataset, logs a summary. Raises ``ValueError`` for anything a user can put right."""
    parser = plain_parser(__doc__ or "", EXAMPLE, "dataset folder", "the dataset")
    parser.add_argument(
        "--conversations", type=Path, nargs="+", required=True, metavar="FILE", help="JSON or JSON lines, as above"
    )
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="folder that holds the images and videos")
    parser.add_argument("--frames", type=positive, default=8, help="pictures of a video (default %(default)s)")
    add_limit_flags(parser, "conversations")
    add_image_flags(parser)
    args = parser.parse_args(argv)
    check_ranges(parser, args, {"frames": (1, _MOST_FRAMES)})
    check_output(args.output, args.overwrite, SIDECAR)
    if args.images is not None:
        need_folder(args.images, "--images")

    problems = Problems(args.max_failed_fraction, "conversations")
    entries = read_entries(args.conversations)[: args.limit]
    media = Media(args.images, args.frames, args.check_images, args.max_image_pixels)
    source = f"conversations: {', '.join(path.name for path in args.conversations)}"
    with writing_conversations(args.output, source, args.overwrite) as writer:
        write_entries(entries, media, writer, problems)
    for line in problems.lines():
        logger.warning(line)
    size = sum(path.stat().st_size for path in args.output.rglob("*") if path.is_file()) / 1e6
    counts = f"{writer.conversations} conversations ({writer.text_only} of text alone), {writer.pictures} pictures"
    logger.info("%s -> %s (%.1f MB)", counts, args.output, size)
    if problems.lost:
        logger.info("%d of %d conversations could not be used; the warnings above say why", problems.lost, len(entries))


if __name__ == "__main__":
    run(main)
