"""Counting what is wrong in a source, by reason, and stopping when it is too much."""

from __future__ import annotations

from bitgen.guards.printable import printable

_NAMES_SHOWN = 20


class Unusable(ValueError):
    """One record that cannot be used: it is counted under ``reason`` and left out. ``detail`` says more of this one."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.detail = reason, detail


class Problems:
    """Counts what is wrong in the source by reason, keeping the first names of each; constant memory."""

    def __init__(self, max_failed_fraction: float, unit: str = "images") -> None:
        self.max_failed_fraction, self.unit = max_failed_fraction, unit
        self.counts: dict[str, int] = {}
        self.names: dict[str, list[str]] = {}
        self.lost = 0

    def add(self, reason: str, name: str, lost: bool = False) -> None:
        """Counts ``name`` under ``reason``; ``lost`` says that it drops out of the dataset."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        names = self.names.setdefault(reason, [])
        if len(names) < _NAMES_SHOWN:
            names.append(printable(name, 200))
        self.lost += lost

    def lines(self) -> list[str]:
        """One line a reason: count, reason, names."""
        lines = []
        for reason, count in self.counts.items():
            names = ", ".join(self.names[reason])
            more = count - len(self.names[reason])
            lines.append(f"{count} x {reason}: {names}" + (f", and {more} more" if more else ""))
        return lines

    def stop_if_too_many(self, total: int) -> None:
        """Raises ``ValueError`` with reasons and names when more than the allowed share of ``total`` is lost."""
        if self.lost > self.max_failed_fraction * total:
            share = 100 * self.lost / total
            raise ValueError(
                f"{self.lost} of {total} {self.unit} ({share:.1f}%) cannot be used, more than "
                f"{100 * self.max_failed_fraction:g}%; no dataset was written. Check that the folder, the lists and "
                f"the captions belong together; if these {self.unit} may be left out, raise --max_failed_fraction:\n  "
                + "\n  ".join(self.lines())
            )
