"""What would make the host wait for a device, found on the CPU, where nothing does.

Two modes look at every call: one at what Python says (reading a tensor, sending one without
`non_blocking`), the other at the operations that torch carries out, also in a backward pass. That a GPU does
not wait is tested on one (tests/gpu/test_step_cuda.py); this finds what is new without it.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

READING = {
    "tolist", "item", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "__array__",
    "nonzero", "unique",
}  # fmt: skip
MAKING = {"tensor", "as_tensor", "new_tensor", "asarray"}
WAITING = {
    "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal", "aten::masked_select",
    "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::bincount",
    "aten::_linalg_check_errors",
}  # fmt: skip
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_"}


class HostWaits:
    """Inside, `found` gets each such call of this thread, with where in the package it was made."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def __enter__(self) -> HostWaits:
        self._open = ExitStack()
        self._open.enter_context(_Calls(self._note))
        self._open.enter_context(_Operations(self._note))
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def _note(self, what: str) -> None:
        places = [frame for frame in traceback.extract_stack() if "/hssl_dist/" in frame.filename]
        where = f"{places[-1].filename.rpartition('/')[2]} {places[-1].name}" if places else "elsewhere"
        self.found.append(f"{what} in {where}")


class _Calls(TorchFunctionMode):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = (resolve_name(func) or getattr(func, "__name__", "")).rpartition(".")[2]
        own = (
            "/torch/" not in sys._getframe(1).f_code.co_filename
        )  # torch's calls are known by their operations
        if own and self._waits(name, args, kwargs):
            self._note(name)
        return func(*args, **kwargs)

    def _waits(self, name: str, args: Any, kwargs: Any) -> bool:
        if name in READING:
            return args[0].dtype != torch.uint8  # a generator's state, which is the host's
        if name in MAKING:
            return name == "new_tensor" or kwargs.get("device") is not None
        if name == "to":
            sent = "device" in kwargs or any(isinstance(x, torch.device | str | Tensor) for x in args[1:])
            return sent and not kwargs.get("non_blocking", False)
        return False


class _Operations(TorchDispatchMode):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        by_mask = name in INDEXING and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        repeats = name == "aten::repeat_interleave" and func._overloadname == "Tensor"
        if name in WAITING or by_mask or repeats:
            self._note(name)
        return func(*args, **(kwargs or {}))
