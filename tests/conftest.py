"""What every test shares: one torch thread each, repeatable hypothesis, and the real data where it is at hand."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Before torch is imported, and inherited by the processes that tests start: tests run side by side on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test downloads anything

import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

torch.set_num_threads(1)
settings.register_profile("bitgen", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("bitgen")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; a test that asks for it is skipped where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data is not here: ../shared/data, beside the repository, does not exist")
    return SHARED_DATA


@pytest.fixture(scope="session")
def write_text_corpus() -> Callable[..., Path]:
    """``write_text_corpus(folder, tokenizer, sources)`` writes a text corpus and returns its folder; ``sources`` maps a
    name to documents, each ``(ids, words)`` or a text."""
    from bitgen.data.text_shards import (
        TextInfo,
        TextShardWriter,
        encode_documents,
        tokenizer_sha256,
        write_text_info,
    )

    def write(folder: Path, tokenizer: object, sources: dict[str, list]) -> Path:
        folder.mkdir(parents=True)
        counts = []
        for name, documents in sources.items():
            writer = TextShardWriter(folder, name, len(tokenizer))
            for document in documents:
                if isinstance(document, str):
                    document = (encode_documents(tokenizer, [document])[0], len(document.split()))
                writer.add(*document)
            counts.append(writer.close())
        write_text_info(folder, TextInfo(tokenizer_sha256(tokenizer), len(tokenizer), "uint16", tuple(counts), {}, {}))
        return folder

    return write


@pytest.fixture(scope="session")
def written_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``written_run(features=True, settings={}, **sizes)``: the folder of a run whose model has every part switched on,
    with a checkpoint ``step-00000007`` and two by words, ``chck_1M`` and ``chck_10M``; its weights are random, but no
    gate is closed, no adapter zero and the memory's state not its prior. The same arguments give the same folder."""
    from dataclasses import asdict

    from bitgen.checkpoint.format import split_state
    from bitgen.checkpoint.store import CheckpointStore
    from bitgen.config import Config
    from bitgen.data.tokenizer import build_tokenizer
    from bitgen.model.configuration_bitgen import BitGenConfig
    from bitgen.model.factory import random_vision_config
    from bitgen.model.modeling_bitgen import BitGenModel
    from bitgen.objectives.feature_queue import FeatureQueue
    from bitgen.training.progress import Progress

    words = "a the cat dog mat hill sat runs on over red blue two and it is caption for this image".split()
    texts = [f"{one} {two} {three}" for one in words for two in words for three in words[::3]]
    made: dict[str, Path] = {}

    def write(step: int, store: CheckpointStore, config: Config, sizes: BitGenConfig) -> Path:
        torch.manual_seed(step)
        model = BitGenModel(sizes)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("gate") or "lora_B" in name:
                    parameter.normal_()
                elif name.startswith("embeddings"):
                    parameter.mul_(20)
            if model.memory is not None:
                model.memory.state.normal_()
        own, base = split_state(model, model.base_names())
        queue = FeatureQueue(64, sizes.embed_dim, sizes.max_seq_len, sizes.pooled_tokens)
        for features in (queue.entries.image_features, queue.entries.text_features):
            features[:50].normal_()
        queue.filled = queue.position = 50
        progress = asdict(Progress(step=step, words_seen=1_234_567))
        state = {"step": step, "phase": 2, "progress": progress, "objective": {"queue": queue.state_dict()}}
        files = {"config.yaml": config.to_yaml(), "config.json": json.dumps(sizes.to_dict())}
        return store.save(step, own, state, files, store.store_base(base))

    def build(features: bool = False, settings: dict[str, object] | None = None, **changes: object) -> Path:
        key = repr((features, settings, sorted(changes.items())))
        if key in made:
            return made[key]
        folder = tmp_path_factory.mktemp("written") / "run"
        tokenizer = build_tokenizer("train", texts, 320, folder / "tokenizer")
        tower = None if features else random_vision_config(32, layers=2, heads=2, patch_size=14, image_size=28)
        sizes: dict[str, object] = dict(
            vision_config=tower,
            image_size=28,
            feature_dim=6 if features else None,
            feature_tokens=9 if features else None,
            vision_tuning="frozen" if features else "lora",
            lora_rank=4,
            lora_alpha=8,
            embed_dim=16,
            vision_embed_dim=16,
            num_layers=2,
            num_heads=2,
            ffn_dim=32,
            compressor_dim=24,
            vocab_size=len(tokenizer),
            max_seq_len=40,
            memory_size=4,
            memory_dim=16,
        )
        encoder = "features" if features else "random"
        config = Config().replace(vision_encoder=encoder, train_data="scenes", tokenizer="train", text_loss_weight=1.0)
        config = config.replace(**(settings or {}))
        store = CheckpointStore(folder, keep=9)
        model_config = BitGenConfig(**{**sizes, **changes})
        for step, millions in ((1, 1), (2, 10)):
            write(step, store, config, model_config).rename(folder / f"chck_{millions}M")
        write(7, store, config, model_config)
        made[key] = folder
        return folder

    return build
