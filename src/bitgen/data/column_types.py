"""Types of the columns of Arrow and Parquet tables: which can be captions, and which encoded images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from bitgen.data.captions import is_languages
from bitgen.guards.printable import printable

if TYPE_CHECKING:
    import pyarrow as pa


def wrong_columns(schema: pa.Schema, payload: str, captions: Iterable[str]) -> str | None:
    """What is wrong with the types of the columns that hold images (or features) and captions, as a clause; or None."""
    for name in captions:
        if not holds_texts(schema.field(name).type):
            return (
                f"column {printable(name, 40)} holds {printable(schema.field(name).type, 80)}, neither a string nor a "
                "list of strings: write the captions to a column of strings"
            )
    if not holds_bytes(schema.field(payload).type):
        return (
            f"column {payload} holds {printable(schema.field(payload).type, 80)}, not the bytes of encoded files: "
            "write those to it (names and addresses of files are not followed)"
        )
    return None


def streamed_alone(schema: pa.Schema, payload: str, captions: str) -> str | None:
    """The first of two columns that rows cannot be read from at random: captions that are no lists, or encoded files
    in a struct; or None."""
    import pyarrow.types as types

    kind = schema.field(captions).type
    if not (types.is_list(kind) or types.is_large_list(kind)):
        return captions
    return None if _is_binary(schema.field(payload).type) else payload


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether a type is that of encoded files: their bytes, or a struct with ``bytes`` as ``datasets`` writes it."""
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    return types.is_binary(kind) or types.is_large_binary(kind)


def holds_texts(kind: pa.DataType) -> bool:
    """Whether :func:`bitgen.data.captions.captions_of` understands every cell of a type."""
    import pyarrow.types as types

    if types.is_struct(kind):
        return is_languages([field.name for field in kind]) and all(_is_text(field.type) for field in kind)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) or types.is_dictionary(kind):
        kind = kind.value_type
    return _is_text(kind)


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind)
