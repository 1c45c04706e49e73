"""Encode a split once: everything that retrieval, matching and the memory's figures read afterwards."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from bitgen.machine.stopping import outlast_stop_signals
from bitgen.model.episodic_memory import MemoryReader
from bitgen.model.modeling_bitgen import BitGenModel, StackOutput


@dataclass(frozen=True)
class EncodedSplit:
    """N images and their M captions as the model sees them, on the CPU.

    image_features [N, D], text_features [M, D]: float32, L2-normalised.
    caption_image [M] int64: row of the image that a caption belongs to; every image has at least one caption.
    input_ids [M, T] int32 padded right, lengths [M] int64: real tokens of a caption, BOS and EOS included.
    image_tokens [N, P', D] bfloat16: pooled tokens, what every ITM pass sees (100k images: 1.2 GB at 49 x 128).
    """

    image_features: Tensor
    text_features: Tensor
    caption_image: Tensor
    input_ids: Tensor
    lengths: Tensor
    image_tokens: Tensor

    def __post_init__(self) -> None:
        captions = torch.bincount(self.caption_image, minlength=len(self.image_features))
        assert len(captions) == len(self.image_features), "caption_image points past the last image"
        if (captions == 0).any():
            row = int((captions == 0).nonzero()[0])
            raise ValueError(f"image {row} of the split has no caption; remove such images when preparing the data")

    @property
    def num_images(self) -> int:
        return len(self.image_features)

    @property
    def num_texts(self) -> int:
        return len(self.text_features)

    def tokens_of(self, captions: Tensor) -> tuple[Tensor, Tensor]:
        """input_ids and attention_mask [S, t] int64 of caption rows [S], cut to the longest of them."""
        return _cut(self.input_ids, self.lengths, captions)


class Split(Protocol):
    """What evaluation asks of a dataset: images by row, and captions numbered image by image. ``kind``: ``images`` or
    ``features``."""

    @property
    def kind(self) -> str: ...

    @property
    def image_count(self) -> int: ...

    @property
    def captions_of(self) -> Callable[[int], list[str]]: ...

    @property
    def tokens(self) -> Callable[[int], Tensor]: ...

    def image_tensor(self, row: int, /) -> Tensor: ...


class _Images(Dataset):
    """These images of a dataset without their captions, for a DataLoader to decode in parallel."""

    def __init__(self, dataset: Split, rows: Sequence[int]) -> None:
        self.dataset, self.rows = dataset, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor | ValueError:
        try:
            return self.dataset.image_tensor(self.rows[index])
        except ValueError as error:  # returned, since what a worker raises comes with its traceback in the message
            return error


def _stacked(images: list[Tensor | ValueError]) -> Tensor | ValueError:
    bad = next((image for image in images if isinstance(image, ValueError)), None)
    return bad if bad is not None else torch.stack(cast(list[Tensor], images))


def image_input(dataset: Split) -> str:
    """The argument of the model that a dataset's image tensors are for."""
    return "pixel_values" if dataset.kind == "images" else "vision_features"


@contextmanager
def image_batches(
    dataset: Split, rows: Sequence[int], batch_size: int, num_workers: int = 0
) -> Iterator[Iterator[Tensor]]:
    """The tensors of these images in their order, ``[b, ...]`` a batch, while the block runs.

    Iterating raises ``ValueError`` for a bad record.
    """
    loader = DataLoader(
        _Images(dataset, rows),
        batch_size,
        num_workers=num_workers,
        collate_fn=_stacked,
        worker_init_fn=outlast_stop_signals,
        # One of its own: a DataLoader without one draws from the global one, and validating in the middle of a run
        # would change what comes after.
        generator=torch.Generator(),
    )
    batches = iter(loader)
    try:
        yield map(_checked, batches)
    finally:
        # By hand: an exception's traceback would keep the iterator, and the program's end would wait for the workers.
        getattr(batches, "_shutdown_workers", lambda: None)()


def _checked(batch: Tensor | ValueError) -> Tensor:
    if isinstance(batch, ValueError):
        raise batch
    return batch


class Runner:
    """Feeds a model in batches for evaluation: eval mode, no gradient, one device, one precision (`autocast()`).

    Batches change nothing but speed and memory: in eval mode a sample's result does not depend on its neighbours.
    """

    def __init__(
        self,
        model: BitGenModel,
        batch_size: int = 128,
        device: torch.device | str = "cpu",
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        num_workers: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.model = model
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.autocast = autocast
        self.num_workers = num_workers

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode, no gradient, autocast; the model's own mode comes back afterwards."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.autocast():
                yield
        finally:
            self.model.train(training)

    def encode(self, dataset: Split, max_images: int | None = None) -> EncodedSplit:
        """Encode a split (its first `max_images` images and all their captions).

        Raises ValueError for a split without images or captions.
        """
        count = min(dataset.image_count, max_images or dataset.image_count)
        if not count:
            raise ValueError("nothing to evaluate: the split has no images")
        captions = torch.tensor([len(dataset.captions_of(row)) for row in range(count)], dtype=torch.int64)
        owner = torch.arange(count).repeat_interleave(captions)
        input_ids, lengths = _tokens(dataset, len(owner))
        with self.evaluating():
            image_features, image_tokens = self._encode_images(dataset, count)
            text_features = self._encode_texts(input_ids, lengths)
        return EncodedSplit(image_features, text_features, owner, input_ids, lengths, image_tokens)

    def _encode_images(self, dataset: Split, count: int) -> tuple[Tensor, Tensor]:
        name = image_input(dataset)
        config = self.model.config
        features = torch.empty(count, config.embed_dim)
        tokens = torch.empty(count, config.pooled_tokens, config.embed_dim, dtype=torch.bfloat16)
        rows = torch.arange(count).split(self.batch_size)
        with image_batches(dataset, range(count), self.batch_size, self.num_workers) as batches:
            for part, batch in zip(rows, batches, strict=True):
                encoding = self.model.encode_image(**{name: batch.to(self.device)})
                features[part] = encoding.image_features.float().cpu()
                tokens[part] = self.model.pool_image_tokens(encoding.image_tokens).to(torch.bfloat16).cpu()
        return features, tokens

    def _encode_texts(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        features = torch.empty(len(input_ids), self.model.config.embed_dim)
        reader = self.memory_reader()
        for rows in lengths.argsort(stable=True).split(self.batch_size):  # like lengths together: little padding
            ids, mask = _cut(input_ids, lengths, rows)
            features[rows] = self.model.encode_text(ids.to(self.device), mask.to(self.device), reader).float().cpu()
        return features

    def match(self, encoded: EncodedSplit, texts: Tensor, images: Tensor) -> Tensor:
        """ITM logit difference, match minus no match, [S] float32 of the pairs (texts[s], images[s]) of rows."""
        if self.model.config.itm_likelihood:
            cosines = (self._pooled_features(encoded)[images] * encoded.text_features[texts]).sum(dim=1)
            evidence = self.text_evidence(encoded, texts, images)
            logits = self.model.evidence_logits(evidence.to(self.device), cosines.to(self.device))
            return (logits[:, 1] - logits[:, 0]).detach().cpu()
        scores = torch.empty(len(texts))
        for part, mask, fused in self.fuse(encoded, texts, images):
            with self.evaluating():
                logits = self.model.itm_logits(fused.hidden_states, mask)
            scores[part] = (logits[:, 1] - logits[:, 0]).cpu()
        return scores

    def order(self, encoded: EncodedSplit, texts: Tensor, images: Tensor) -> Tensor:
        """What matching orders candidates by, [S] float32: its logit, or the evidence in nats that it reads.

        What a likelihood head takes off for cosine is for pairs whose wrong half was picked by it: not here.
        """
        return (self.text_evidence if self.model.config.itm_likelihood else self.match)(encoded, texts, images)

    def _pooled_features(self, encoded: EncodedSplit) -> Tensor:
        """Normalised features [N, D] of the pooled tokens, which matching sees; on 7 x 7 patches the encoded ones."""
        with self.evaluating():
            return torch.cat(
                [
                    self.model.image_features(tokens.to(self.device).float()).cpu()
                    for tokens in encoded.image_tokens.split(self.batch_size)
                ]
            )

    def text_evidence(self, encoded: EncodedSplit, texts: Tensor, images: Tensor) -> Tensor:
        """`log p(caption | image) - log p(caption)`, [S] float32 nats, of the pairs (texts[s], images[s]) of rows."""
        evidence = torch.empty(len(texts))
        for part, mask, fused in self.fuse(encoded, texts, images):
            evidence[part] = self._log_likelihood(encoded, texts[part], mask, fused).cpu()
        judged, where = texts.unique(return_inverse=True)
        alone = torch.empty(len(judged))
        for part, mask, read in self.read(encoded, judged):
            alone[part] = self._log_likelihood(encoded, judged[part], mask, read).cpu()
        return evidence - alone[where]

    def _log_likelihood(self, encoded: EncodedSplit, texts: Tensor, mask: Tensor, output: StackOutput) -> Tensor:
        ids = encoded.tokens_of(texts)[0].to(mask.device)
        with self.evaluating():
            return self.model.log_likelihood(output.hidden_states, ids, mask)

    def fuse(
        self, encoded: EncodedSplit, texts: Tensor, images: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, StackOutput]]:
        """Fused passes over the pairs (texts[s], images[s]) of rows, captions of like length together.

        Yields the positions s of a batch [b], its attention mask [b, t] and the stack's output, on the device.
        """
        reader = self.memory_reader()
        for part in encoded.lengths[texts].argsort(stable=True).split(self.batch_size):
            ids, mask = (tensor.to(self.device) for tensor in encoded.tokens_of(texts[part]))
            # Stored as bfloat16, which they were rounded to; the passes compute from float32 as in training.
            tokens = encoded.image_tokens[images[part]].to(self.device).float()
            # Modes are set a batch at a time: a generator must not leave its own to its caller.
            with self.evaluating():
                fused = self.model.run_stack(ids, mask, tokens, reader)
            yield part, mask, fused

    def read(self, encoded: EncodedSplit, texts: Tensor) -> Iterator[tuple[Tensor, Tensor, StackOutput]]:
        """Passes over captions ``texts [S]`` without an image; yields as :meth:`fuse` does."""
        reader = self.memory_reader()
        for part in encoded.lengths[texts].argsort(stable=True).split(self.batch_size):
            ids, mask = (tensor.to(self.device) for tensor in encoded.tokens_of(texts[part]))
            with self.evaluating():
                output = self.model.run_stack(ids, mask, reader=reader)
            yield part, mask, output

    def memory_reader(self) -> MemoryReader | None:
        """The running memory ready to be read, once for many batches; None for a model without one."""
        return None if self.model.memory is None else self.model.memory.reader()


def _tokens(dataset: Split, count: int) -> tuple[Tensor, Tensor]:
    """Captions 0 .. count - 1 as input_ids [M, T] int32, padded right, and their lengths [M]."""
    sequences = [dataset.tokens(caption).int() for caption in range(count)]
    return pad_sequence(sequences, batch_first=True), torch.tensor([len(sequence) for sequence in sequences])


def _cut(input_ids: Tensor, lengths: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of padded ids as int64, cut to the longest of them, and their attention mask."""
    chosen = lengths[rows]
    longest = int(chosen.max())
    return input_ids[rows, :longest].long(), (torch.arange(longest) < chosen[:, None]).long()
