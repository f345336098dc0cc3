"""Reading a pickled pandas table from a stranger: the table's own types, and nothing else.

A pickle is a program that may call anything it can name. Here it can name only what pandas and
numpy need to put a table together again; any other name ends the reading before it is looked up.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy._core import multiarray
from numpy._core.numeric import _frombuffer  # type: ignore[attr-defined]
from pandas._libs import internals
from pandas._libs.arrays import __pyx_unpickle_NDArrayBacked
from pandas.core.arrays import DatetimeArray
from pandas.core.indexes.base import _new_Index
from pandas.core.indexes.datetimes import _new_DatetimeIndex
from pandas.core.internals.blocks import new_block
from pandas.core.internals.managers import BlockManager


def latin1_bytes(text: str, encoding: str) -> bytes:
    """Stand in for ``_codecs.encode``, by which protocol 2 spells bytes, and for no other codec."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes spelled in {encoding!r}; only latin1 is a table's")
    return text.encode("latin1")


_NUMPY_CORES = ("numpy.core", "numpy._core")
"""The old name of numpy's inner package, and the one since numpy 2."""
_INDEX_HOMES = ("pandas.core.indexes.base", "pandas.core.index", "pandas.indexes.base")

ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    **{(f"{core}.multiarray", "_reconstruct"): multiarray._reconstruct for core in _NUMPY_CORES},
    **{(f"{core}.multiarray", "scalar"): multiarray.scalar for core in _NUMPY_CORES},
    **{(f"{core}.numeric", "_frombuffer"): _frombuffer for core in _NUMPY_CORES},
    ("_codecs", "encode"): latin1_bytes,
    ("builtins", "slice"): slice,
    ("__builtin__", "slice"): slice,
    ("pandas", "DataFrame"): pd.DataFrame,
    ("pandas.core.frame", "DataFrame"): pd.DataFrame,
    # The table's blocks: since pandas 1.3, and before.
    ("pandas._libs.internals", "_unpickle_block"): internals._unpickle_block,
    ("pandas.core.internals.blocks", "new_block"): new_block,
    ("pandas.core.internals.managers", "BlockManager"): BlockManager,
    ("pandas.core.internals", "BlockManager"): BlockManager,
    # Times: an array of their own since pandas 1.4.
    ("pandas.core.arrays.datetimes", "DatetimeArray"): DatetimeArray,
    ("pandas._libs.arrays", "__pyx_unpickle_NDArrayBacked"): __pyx_unpickle_NDArrayBacked,
    ("pandas.core.indexes.datetimes", "_new_DatetimeIndex"): _new_DatetimeIndex,
    ("pandas.core.indexes.datetimes", "DatetimeIndex"): pd.DatetimeIndex,
    # Indexes: the typed ones before pandas 2 are plain ones now.
    **{(home, "_new_Index"): _new_Index for home in _INDEX_HOMES},
    **{(home, "Index"): pd.Index for home in _INDEX_HOMES},
    ("pandas.core.indexes.numeric", "Int64Index"): pd.Index,
    ("pandas.core.indexes.range", "RangeIndex"): pd.RangeIndex,
}
"""Every name a pickled table may use, under its old and new modules, and what it means here."""


class TableUnpickler(pickle.Unpickler):
    """An unpickler that finds the names in ``ADMITTED`` and no other."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return ADMITTED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it names {module_name}.{global_name}, which no table needs"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"it refers to an object outside of it ({pid!r})")


def read_table_pickle(path: Path) -> pd.DataFrame:
    """Return the pandas DataFrame in a pickle file, of any protocol and of pandas 1 or 2.

    Raises ValueError naming the file and, if there is one, the name it must not use.
    """
    try:
        with path.open("rb") as file:
            table = TableUnpickler(file).load()
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} was not loaded: {error}") from error
    # What damaged bytes do to the rebuilding of a table cannot be listed: it may raise anything.
    except Exception as error:
        raise ValueError(
            f"{path} is not a whole pickled table ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(table, pd.DataFrame):
        raise ValueError(f"{path} holds a {type(table).__name__}, not a pandas DataFrame")
    return table
