"""Element types: their numbers on the wire, and their names in torch and numpy, which are the same."""

from __future__ import annotations

from typing import Any

from .errors import make_error

# In the order of their numbers; those of fewer than 8 bits have no tensors in torch or numpy, and are not here.
ITEM_SIZES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "complex64": 8,
    "float8_e8m0fnu": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2fnuz": 1,
}
DTYPES = tuple(ITEM_SIZES)
NUMBERS = {name: number for number, name in enumerate(DTYPES)}


def dtype_name(dtype: Any) -> str:
    """The name of a torch or numpy type, or of a name. ``TB_DTYPE`` if it does not travel."""
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", None) or str(dtype)
    name = name.removeprefix("torch.")
    if name in NUMBERS:
        return name
    raise make_error("TB_DTYPE", f"tensors of {name} do not travel: {', '.join(DTYPES)} do", {"dtype": name})
