"""An array that grows at its end."""

from typing import Any

import numpy as np
import numpy.typing as npt


class Growing:
    """An array that grows at its end and is never held twice."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self.array = np.empty(256, dtype)
        self.length = 0

    def extend(self, values: npt.ArrayLike, count: int) -> None:
        """Append `count` values, or one value `count` times."""
        needed = self.length + count
        if needed > len(self.array):
            self.array.resize(max(needed, len(self.array) * 9 // 8), refcheck=False)
        self.array[self.length : needed] = values
        self.length = needed

    def finish(self) -> npt.NDArray[Any]:
        """Return the array, cut to its length. Nothing may be appended after."""
        self.array.resize(self.length, refcheck=False)
        return self.array
