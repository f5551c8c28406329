"""Notes the large tensors that a piece of code makes."""

from torch.utils._python_dispatch import TorchDispatchMode


class LargeTensors(TorchDispatchMode):
    """Context manager; `found` lists the operations whose result has more than `most` numbers and is no view.

    A result that lies in the memory of an argument (a view, or a change in place) needs no memory of its own.
    """

    def __init__(self, most):
        super().__init__()
        self.most, self.found = most, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        memory = {x.untyped_storage().data_ptr() for x in args if hasattr(x, "untyped_storage")}
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if hasattr(x, "numel") and x.numel() > self.most and x.untyped_storage().data_ptr() not in memory:
                self.found.append((str(func), tuple(x.shape)))
        return out
