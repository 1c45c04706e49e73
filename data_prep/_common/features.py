"""Features computed earlier: ``.npy`` arrays, memory-mapped, and their rows as stored bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from _common.problems import Problems, Unusable
from _common.reading import need_file, read_json, read_names
from bitgen.data.records import FEATURE_DTYPES
from bitgen.guards.json_files import BadJson, check_keys
from bitgen.guards.printable import printable

_DECLARED = {"scale": (float, int), "zero_point": (int, float), "encoder": (str, type(None))}


def open_array(path: Path, flag: str) -> np.ndarray:
    """Maps a ``.npy`` file ``[N, P, C]`` or ``[N, C]``; ``ValueError`` for another rank, an archive or no array."""
    need_file(path, flag)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{flag} {path} is not a readable .npy array: {error}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{flag} {path} is an archive of arrays; save one array with numpy.save")
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(
            f"{flag} {path} has shape {list(array.shape)}; it must be [images, patches, channels] or [images, channels]"
        )
    if stored_dtype(array) not in FEATURE_DTYPES:
        raise ValueError(f"{flag} {path} has dtype {array.dtype}; it must be one of {', '.join(FEATURE_DTYPES)}")
    return array


def stored_dtype(array: np.ndarray) -> str:
    """Name of the dtype that rows of ``array`` are stored in: float64 becomes float32."""
    return "float32" if array.dtype == np.float64 else array.dtype.name


def row_shape(array: np.ndarray) -> tuple[int, int]:
    """``(P, C)`` of a row of ``[N, P, C]`` or ``[N, C]`` (P = 1)."""
    return (array.shape[1], array.shape[2]) if array.ndim == 3 else (1, array.shape[1])


def row_payload(array: np.ndarray, row: int) -> bytes:
    """Raw little-endian bytes of a row; :class:`Unusable` when it holds NaN or infinite values."""
    values = np.ascontiguousarray(array[row], dtype=np.dtype(stored_dtype(array)).newbyteorder("<"))
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise Unusable("features with NaN or infinite values", f"row {row}")
    return values.tobytes()


class FeatureFile:
    """Rows of a ``.npy`` file ``[N, P, C]`` or ``[N, C]`` (P = 1), one per name in a list; memory-mapped.

    int8/uint8 rows stay quantised (``info_path`` gives scale and zero_point); float64 is stored as float32.
    Raises ``ValueError`` for another rank or dtype, or a length that differs from the list's.
    """

    def __init__(self, path: Path, names_path: Path, info_path: Path | None, problems: Problems) -> None:
        self.array = open_array(path, "--features")
        names = read_names(names_path, "--feature_images")
        if len(names) != len(self.array):
            raise ValueError(
                f"--features {path} has {len(self.array)} rows but --feature_images {names_path} lists {len(names)} "
                "images; they must match line by row"
            )
        self.rows: dict[str, int] = {}
        for row, name in enumerate(names):
            if name in self.rows:
                problems.add("duplicate name in --feature_images (first row used)", name)
            else:
                self.rows[name] = row
        dtype, feature_shape = stored_dtype(self.array), row_shape(self.array)
        declared = self._read_declaration(info_path, dtype, feature_shape)
        quantised = dtype.endswith("int8")
        if quantised and not {"scale", "zero_point"} <= set(declared):
            raise ValueError(f"--features {path} is {dtype}: give --feature_info with its scale and zero_point")
        scale, zero_point = (declared[field] if quantised else None for field in ("scale", "zero_point"))
        if scale is not None and not scale > 0:
            raise ValueError(f"--feature_info {info_path}: scale is {scale}; it must be positive")
        if zero_point is not None and zero_point != (zero_point := int(zero_point)):
            raise ValueError(f"--feature_info {info_path}: zero_point must be a whole number")
        self.description = {
            "feature_shape": feature_shape,
            "feature_dtype": dtype,
            "scale": scale,
            "zero_point": zero_point,
            "encoder": declared.get("encoder"),
        }

    @staticmethod
    def _read_declaration(path: Path | None, dtype: str, shape: tuple[int, int]) -> dict:
        if path is None:
            return {}
        declared = read_json(path, "--feature_info")
        if not isinstance(declared, dict):
            raise ValueError(f"--feature_info {path} must hold a JSON object")
        try:
            check_keys(declared, {field: kind for field, kind in _DECLARED.items() if field in declared})
        except BadJson as error:
            raise ValueError(
                f"--feature_info {path}: {error}; scale and zero_point must be numbers, zero_point a whole one"
            ) from error
        for field, found in (("dtype", dtype), ("shape_per_image", list(shape))):
            if field in declared and declared[field] != found:
                raise ValueError(
                    f"--feature_info {path} declares {field} {printable(declared[field], 80)}, "
                    f"but --features has {found}"
                )
        return declared

    def payload(self, name: str) -> bytes:
        """Stored bytes of the row of ``name``, as :func:`row_payload`."""
        return row_payload(self.array, self.rows[name])
