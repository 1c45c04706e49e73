"""Records that the loaders had to replace: counted by reason, named in the log, and too many of them end the run."""

from __future__ import annotations

import logging

from bitgen.machine.ranks import Processes, gather_objects
from bitgen.protocols import Skipped
from bitgen.training.progress import Progress

logger = logging.getLogger(__name__)

# A share says nothing of a handful: it is taken of the samples seen, but of an epoch or this many at least.
_LEAST_SAMPLES = 1000
_NAMED_AT_MOST = 1000


class TooManyBadRecords(ValueError):
    """More records than ``max_bad_fraction`` could not be used."""


class SkippedRecords:
    """Counts in ``progress.bad_records``, on every rank the records of all ranks.

    Args:
        max_fraction: share of the samples that may be replaced.
        epoch_samples: samples an epoch.
    """

    def __init__(self, max_fraction: float, epoch_samples: int) -> None:
        self.max_fraction = max_fraction
        self.least = min(_LEAST_SAMPLES, epoch_samples)
        self._named: set[str] = set()

    def add(self, skipped: list[Skipped], progress: Progress, processes: Processes) -> None:
        """Take in what this rank met in a step; all ranks call it together.

        Raises:
            TooManyBadRecords: on every rank.
        """
        for record in (record for part in gather_objects(skipped, processes) for record in part):
            progress.bad_records[record.reason] = progress.bad_records.get(record.reason, 0) + 1
            self._name(record, processes)
        count = sum(progress.bad_records.values())
        seen = max(progress.samples_seen, self.least)
        if count > self.max_fraction * seen:
            reasons = ", ".join(f"{number} x {reason}" for reason, number in progress.bad_records.items())
            raise TooManyBadRecords(
                f"{count} records could not be used among {seen:,} samples ({100 * count / seen:.1f}%, {reasons}), "
                f"more than --max_bad_fraction {self.max_fraction:g} allows, so training stopped after step "
                f"{progress.step}. The log names them: prepare the data again, or allow more"
            )

    def _name(self, record: Skipped, processes: Processes) -> None:
        """Once each: an epoch later it is met again."""
        if not processes.is_main or record.message in self._named or len(self._named) > _NAMED_AT_MOST:
            return
        if len(self._named) == _NAMED_AT_MOST:
            logger.warning("%d records are named above; further ones are counted alone", _NAMED_AT_MOST)
        else:
            logger.warning("record skipped, the next one takes its place: %s", record.message)
        self._named.add(record.message)
