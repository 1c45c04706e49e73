"""How fast images become tensors, whether training waits for them, and what streaming costs as the data grows.

Prints JSON lines:
  decode          images/s on one core, from the file's bytes, of the ways below in turn (they take turns image set by
                  image set, so that a machine that slows down slows all of them); `ratio_to_pil` is the median over the
                  rounds of the speed relative to `pil`
    pil             Pillow: open, convert, resize (antialiased bicubic), as a Pillow image
    pil_tensor      the same, normalised into a float tensor as training needs it
    bitgen          BitGenProcessor.image: the path of training and inference, normalised tensor and all
  training_wait   share of a training step that waits for data, encoder running live (random weights, DINOv2-base's
                  shape unless --vision small), streamed shards, --num_workers workers; the first step, in which the
                  workers start, is left out
  streaming       --scale N ...: N JPEGs (of the same files, over and over) as a dataset folder, one process: seconds to
                  open it, images/s over an epoch (or its first --scale_images), and how much its memory grew from the
                  first 500 images to the highest after them

CPU seconds of the process are counted for `decode`, so that other processes on the machine count less.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from bitgen.config import Config
from bitgen.data.record_writer import write_dataset
from bitgen.data.records import DatasetInfo, Record
from bitgen.data.shards import open_shards
from bitgen.data.stream import StreamDataset
from bitgen.data.tokenizer import train_bpe
from bitgen.machine.devices import start_processes
from bitgen.model.processing_bitgen import BitGenProcessor
from bitgen.run import build_trainer
from bitgen.tasks import TASKS

logger = logging.getLogger("data_loading")

COCO = Path(__file__).resolve().parents[2] / "shared" / "data" / "coco_sample" / "val2017"
SIZE = 224
CAPTIONS = ("a photograph of a street with people", "somebody rides a bicycle past a red house")
_WARM_UP = 500  # images before memory is first looked at


def read_images(folder: Path | None, count: int) -> tuple[list[bytes], str]:
    """Encoded JPEGs of a folder, or made-up ones of COCO's size where none is named and COCO's sample is not here; and
    what they are."""
    paths = sorted((folder or COCO).glob("*.jpg"))[:count]
    if paths:
        return [path.read_bytes() for path in paths], f"{len(paths)} JPEGs of {paths[0].parent.name}"
    if folder is not None:
        raise SystemExit(f"--images {folder}: there is no *.jpg in it")
    return [made_up_jpeg(seed) for seed in range(count)], f"{count} made-up JPEGs of 640 x 480"


def made_up_jpeg(seed: int, width: int = 640, height: int = 480) -> bytes:
    """Noise of several grain sizes, which compresses about as photographs do (some 150 kB)."""
    random = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    for grain in (64, 16, 4, 2):
        noise = random.integers(0, 256, (height // grain, width // grain, 3), dtype=np.uint8)
        pixels += np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)) / 4
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


# ---- decoding ----


def pil(data: bytes) -> Image.Image:
    """The plain way."""
    return Image.open(io.BytesIO(data)).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def decode_section(images: list[bytes], what: str, rounds: int) -> Iterator[dict]:
    """One result for each way to decode."""
    processor = BitGenProcessor(None, SIZE)
    mean, std = np.float32(processor.image_mean), np.float32(processor.image_std)

    def pil_tensor(data: bytes) -> torch.Tensor:
        pixels = (np.asarray(pil(data), dtype=np.float32) / 255 - mean) / std
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    ways: dict[str, Callable] = {"pil": pil, "pil_tensor": pil_tensor, "bitgen": processor.image}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in list(ways) if number % 2 else list(reversed(ways)):
            started = time.process_time()
            for data in images:
                ways[name](data)
            if number:  # the first round loads libraries and fills caches
                speeds[name].append(len(images) / (time.process_time() - started))
    for name in ways:
        ratios = [own / base for own, base in zip(speeds[name], speeds["pil"], strict=True)]
        yield {
            "name": "decode",
            "way": name,
            "images": what,
            "images_per_sec_per_core": round(statistics.median(speeds[name]), 1),
            "ratio_to_pil": round(statistics.median(ratios), 3),
        }


# ---- training ----


def write_images(folder: Path, images: list[bytes], count: int) -> None:
    """A dataset of ``count`` images, the same files over and over."""
    records = (Record(f"{i}.jpg", images[i % len(images)], list(CAPTIONS)) for i in range(count))
    write_dataset(folder, records, DatasetInfo(kind="images", source="benchmark"))


def wait_section(images: list[bytes], vision: str, steps: int, batch_size: int, workers: int) -> dict:
    """Trains ``steps`` steps, half of them in each phase; the share of their time that was waited for data."""
    sizes = {"base": (768, 12, 12), "small": (96, 4, 4)}[vision]
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "data", images, max(steps * batch_size, len(images)))
        config = Config().replace(
            vision_encoder="random",
            **dict(zip(("vision_hidden_size", "vision_num_layers", "vision_num_heads"), sizes, strict=True)),
            train_data=str(Path(folder) / "data"),
            streaming=True,
            tokenizer="train",
            vocab_size=300,
            batch_size=batch_size,
            grad_accum_steps=1,
            max_steps=steps,
            lora_warmup_steps=steps // 2,
            num_workers=workers,
            log_steps=1,
            progress=False,
            output_dir=str(Path(folder) / "run"),
            log_dir=str(Path(folder) / "logs"),
        )
        config.validate()
        trainer = build_trainer(
            TASKS["stage1"], config, start_processes(config.training.device, config.training.use_ddp)
        )
        try:
            if not trainer.fit():
                raise SystemExit("stopped by a signal before the last step: nothing was measured")
        finally:
            trainer.monitor.close()
        lines = (Path(folder) / "logs" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if "perf/data_wait_fraction" in record][1:]
    seconds = [batch_size / record["perf/samples_per_sec"] for record in records]
    waited = [record["perf/data_wait_fraction"] * own for record, own in zip(records, seconds, strict=True)]
    return {
        "name": "training_wait",
        "vision": vision,
        "num_workers": workers,
        "batch_size": batch_size,
        "steps": len(records),
        "samples_per_sec": round(batch_size * len(records) / sum(seconds), 2),
        "data_wait_fraction": round(sum(waited) / sum(seconds), 5),
    }


# ---- scale ----


def resident_bytes() -> int:
    """The process's own resident memory, Linux only: files that it maps do not count, they are the system's to drop."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


def scale_section(images: list[bytes], count: int, most: int, shuffle_buffer: int) -> dict:
    """Streams an epoch of ``count`` images, or its first ``most``, in this process."""
    processor = BitGenProcessor(train_bpe(CAPTIONS, 300), SIZE)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "data", images, count)
        size = sum(path.stat().st_size for path in (Path(folder) / "data").iterdir())
        started = time.perf_counter()
        dataset = StreamDataset(
            [open_shards(str(Path(folder) / "data"))], [None], processor, shuffle_buffer=shuffle_buffer
        )
        batches = dataset.batch_sampler(50).epoch(0)
        first = next(batches)
        opened = time.perf_counter() - started
        base = peak = seen = 0
        started, cpu = time.perf_counter(), time.process_time()
        for batch in chain([first], batches):
            for key in batch:
                dataset[key]
            seen += len(batch)
            if seen == _WARM_UP:
                base = resident_bytes()
            peak = max(peak, resident_bytes())
            if seen >= most:
                break
        return {
            "name": "streaming",
            "images": count,
            "disk_gb": round(size / 1e9, 3),
            "seconds_to_open": round(opened, 3),
            "images_streamed": seen,
            "images_per_cpu_sec": round(seen / (time.process_time() - cpu), 1),
            "images_per_sec": round(seen / (time.perf_counter() - started), 1),
            "memory_mb": round(peak / 1e6, 1),
            "memory_growth_mb": round((peak - base) / 1e6, 1),
        }


def main() -> None:
    """Parse the flags, measure, print JSON lines; everything else goes to stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of JPEGs (default: COCO's sample, if here)")
    parser.add_argument("--count", type=int, default=64, help="JPEGs to take from it (default: 64)")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds of decoding (default: 7)")
    parser.add_argument("--vision", choices=("base", "small"), default="base", help="tower of training_wait")
    parser.add_argument("--steps", type=int, default=8, help="training steps of training_wait; 0: leave it out")
    parser.add_argument("--batch_size", type=int, default=16, help="of training_wait (default: 16)")
    parser.add_argument("--num_workers", type=int, default=1, help="of training_wait (default: 1)")
    parser.add_argument("--scale", type=int, nargs="*", default=[], metavar="N", help="images to stream, as 1000 10000")
    parser.add_argument("--scale_images", type=int, default=10**9, metavar="N", help="stop each of them after N images")
    parser.add_argument("--shuffle_buffer", type=int, default=1000, help="of the streaming lines (default: 1000)")
    flags = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    torch.manual_seed(0)

    images, what = read_images(flags.images, flags.count)
    if flags.rounds > 0:
        torch_threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a worker
        for result in decode_section(images, what, flags.rounds):
            print(json.dumps(result), flush=True)
        torch.set_num_threads(torch_threads)
    if flags.steps > 1:
        result = wait_section(images, flags.vision, flags.steps, flags.batch_size, flags.num_workers)
        print(json.dumps(result | {"of": what}), flush=True)
    for count in flags.scale:
        result = scale_section(images, count, flags.scale_images, flags.shuffle_buffer)
        print(json.dumps(result | {"of": what}), flush=True)


if __name__ == "__main__":
    main()
