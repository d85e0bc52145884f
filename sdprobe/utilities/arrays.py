"""Arrays of numpy as tensors."""

from typing import Any

import numpy as np
import torch


def tensor_of(given: Any) -> Any:
    """A floating-point array as a tensor, of any strides and byte order; anything else as it is.

    Memory is shared where torch can use it. Numbers of more than 64 bits become float64.

    >>> import numpy as np
    >>> tensor_of(np.arange(3.0)[::-1]), tensor_of("text")
    (tensor([2., 1., 0.], dtype=torch.float64), 'text')
    """
    if not isinstance(given, np.ndarray) or given.dtype.kind != "f":
        return given
    kind = given.dtype.newbyteorder("=") if given.dtype.itemsize <= 8 else np.dtype(np.float64)
    return torch.from_numpy(np.require(given, kind, ["C", "W"]))
