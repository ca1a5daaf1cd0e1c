"""A stand-in for CUDA graphs on a CPU: record the operations of a function once, and run them again on the same memory.

As in a CUDA graph, a replay repeats the recorded operations with the recorded numbers, on the recorded tensors: Python
does not run again. A number that Python computes for each step (a learning rate, the share of Mixup) would keep its
first value, and a tensor that a later step replaces would keep its old memory. Two differences: recording runs the
operations, and then restores what they changed; and no memory is shared between graphs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SYNCHRONIZING = ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero")


class _Recorder(TorchDispatchMode):
    """Lists operations with their arguments and results, and the memory that was there before as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}  # by address: memory, a copy
        self.created: set[int] = set()  # addresses of memory that the recorded operations allocated

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name in SYNCHRONIZING:  # a GPU would have to finish its work first: no graph can hold it
            raise RuntimeError(f"operation not permitted while capturing: {func}")
        for storage in _storages((args, kwargs)):
            if storage.data_ptr() not in self.created | self.before.keys():
                self.before[storage.data_ptr()] = storage, storage.clone()
        result = func(*args, **kwargs)
        self.created |= {each.data_ptr() for each in _storages(result)} - self.before.keys()
        self.calls.append((func, args, kwargs, result))  # keeps the results, so that their addresses stay theirs
        return result


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [each.untyped_storage() for each in tree_leaves(tree) if isinstance(each, torch.Tensor)]


def capture_on_cpu(function: Callable[[], None], pool: Any) -> Callable[[], None]:
    """Record a function, as `train.graphs.capture_graph` does on a GPU."""
    with _Recorder() as recorder:
        function()
    for storage, copy in recorder.before.values():
        storage.copy_(copy)

    def replay() -> None:
        for func, args, kwargs, result in recorder.calls:
            with torch.no_grad():
                again = func(*args, **kwargs)
            # Write the new values to where later operations read them. Views and operations in place have done so.
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.untyped_storage() != new.untyped_storage():
                    old.copy_(new)

    return replay
