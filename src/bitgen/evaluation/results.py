"""The file of results: a JSON object of tasks, each an object of figures, or of objects of figures."""

import json
import math
from typing import Any

from bitgen.machine.files import write_whole

Results = dict[str, dict[str, Any]]


def write_results(results: Results | list[Any], path: str) -> None:
    """Write as JSON, atomically. NaN becomes null. Errors as in :func:`write_whole`."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(part) for name, part in value.items()}
        if isinstance(value, list):
            return [plain(part) for part in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    write_whole(path, (json.dumps(plain(results), indent=2, allow_nan=False) + "\n").encode())
