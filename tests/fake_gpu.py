"""A GPU made of fake tensors: it holds a program to a GPU's rules on any CPU, and counts what the GPU would do.

Within a FakeGPU, `device="cuda"` works. A tensor "on the GPU" is one of torch's FakeTensors: it has a shape, a type, a
stride and a device, but no values. Tensors on the CPU are real, since the host computes with them. A dispatch mode
sees every operation and raises RuleBroken where

  * a CPU tensor that is no scalar meets one on the GPU;
  * the host waits for the GPU: a value is read, a mask is used as an index, a tensor is copied to the CPU, or a tensor
    is copied to the GPU from memory that is not pinned or without `non_blocking`. Within `waits_allowed()` such waits
    are listed instead;
  * a tensor is used on another stream than the one that wrote it, without a wait in between or without
    `record_stream`;
  * a fused optimizer gets tensors of unequal memory layouts.

It counts launches (operations that start a kernel), the bytes that they move, and the memory that is in use.

Limits: the backward pass is not executed, since autograd's engine needs a real GPU. `backward` gives every leaf a
gradient of its own layout. torch.compile is not executed either. These are private interfaces of torch, so the tests
are skipped if a release lacks them.
"""

import contextlib
import os
import traceback
import weakref
from collections import Counter
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from tests.fake_cuda import Stream, stand_ins

try:
    from torch._subclasses import fake_tensor
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensor,
        FakeTensorMode,
        unset_fake_temporarily,
    )
except ImportError as error:
    pytest.skip(
        f"torch {torch.__version__} has no fake tensors of the expected form: {error}", allow_module_level=True
    )

CUDA = torch.device("cuda", 0)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Operations whose result depends on the values, so that the host must wait for them.
READS = {"_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
COPIES = {"_to_copy", "copy_", "_copy_from"}
# Operations that start no kernel, besides those that torch marks as views.
NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "lift_fresh"}
NO_KERNEL |= {"_unsafe_view", "expand", "as_strided", "record_stream", "resize_"}
TENSORS_OF_A_FUSED_KERNEL = 30


class RuleBroken(AssertionError):
    """The program does what a GPU does not allow, or what makes the host wait."""


class FakeGPU(TorchDispatchMode):
    """A context in which `device="cuda"` works; see above. Only one can be active.

    Attributes:
        sides: the streams that were made.
        launches, operations: number of kernels, and a Counter of them by name.
        moved: bytes that the kernels read and write.
        live, peak: bytes in use now and at most. Views share the memory of their base.
        waits: what made the host wait within `waits_allowed`, with the place in the program.
        late_pins: tensors that the program itself had to pin.
        answer: a function from a tensor of the GPU to what the host gets if it reads it; zeros by default.
    """

    current = None

    def __init__(self):
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.main = Stream("main")
        self.stream, self.sides = self.main, []
        self.allowed, self.waits, self.late_pins = 0, [], []
        self.answer = lambda x: torch.zeros(x.shape, dtype=x.dtype)
        self.pinned, self.kept = set(), []
        self.names, self.named, self.live, self.peak = weakref.WeakKeyDictionary(), 0, 0, 0
        self.written, self.home, self.recorded = {}, {}, {}
        self.reset()

    def reset(self):
        """Sets the counters of launches, bytes and late pins to 0, and the peak to the memory in use."""
        self.launches, self.moved, self.operations = 0, 0, Counter()
        self.peak, self.late_pins = self.live, []

    def pin(self, *tensors):
        """Marks CPU tensors as pinned, as if a loader's thread had done it."""
        for x in tensors:
            self.pinned.add(self.key(x))
            self.kept.append(x)  # so that no other tensor gets its memory

    @contextlib.contextmanager
    def waits_allowed(self):
        """A context in which waits are listed and not refused; yields the list of those within it."""
        self.allowed, before = self.allowed + 1, len(self.waits)
        waits = []
        try:
            yield waits
        finally:
            self.allowed -= 1
            waits += self.waits[before:]

    def key(self, x):
        """The name of a tensor's memory."""
        storage = x.untyped_storage()
        if storage not in self.names:
            self.named += 1
            self.names[storage] = self.named
            if x.device.type == "cuda":
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._freed, storage.nbytes())
        return self.names[storage]

    def _freed(self, size):
        self.live -= size

    def wait(self, what):
        """Called where the host waits for the GPU."""
        frames = [f for f in traceback.extract_stack() if f.filename.startswith((f"{ROOT}/moco", f"{ROOT}/main_"))]
        place = f"{os.path.relpath(frames[-1].filename, ROOT)}:{frames[-1].lineno}" if frames else "the test"
        self.waits.append(f"{what} in {place}")
        if not self.allowed:
            raise RuleBroken(f"the host waits for the GPU: {self.waits[-1]}")

    def __enter__(self):
        FakeGPU.current = self
        self.stack = contextlib.ExitStack()
        # Before torch.cuda claims to be there: then this mode makes its own stand-ins for the driver.
        self.stack.enter_context(self.fake)
        for target, name, value in stand_ins(self):
            self.stack.enter_context(mock.patch.object(target, name, value, create=target is fake_tensor))
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.stack.close()
        FakeGPU.current = None

    def backward(self, loss):
        """Stands for Tensor.backward: gives every leaf a gradient, and counts the nodes of the graph."""
        seen, leaves, open_nodes = set(), [], [loss.grad_fn]
        while open_nodes:
            node = open_nodes.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if hasattr(node, "variable"):
                leaves.append(node.variable)
            open_nodes += [following for following, _ in node.next_functions]
        self.launches += len(seen)  # about one kernel for each node
        for leaf in leaves:
            leaf.grad = torch.empty_like(leaf)
            self._note(torch.ops.aten.zero_.default, [], [leaf.grad])

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = operation.overloadpacket.__name__
        tensors = list(tensors_in((args, kwargs)))
        on_gpu = [x for x in tensors if x.device.type == "cuda"]
        target = kwargs.get("device")
        to_gpu = target is not None and torch.device(target).type == "cuda"
        if operation.namespace == "prim" or not (on_gpu or to_gpu):  # the former only ask for a device
            with contextlib.nullcontext() if any(map(is_fake, tensors)) else unset_fake_temporarily():
                return operation(*args, **kwargs)
        waits = len(self.waits)
        self._check_streams(operation, on_gpu)
        if name in COPIES:
            asynchronous = kwargs.get("non_blocking") or (name == "copy_" and True in args[2:])
            if (answer := self._check_copy(name, args, target, to_gpu, asynchronous)) is not None:
                return answer
        elif any(x.dim() and x.device.type == "cpu" for x in tensors):
            shapes = [(x.device.type, tuple(x.shape)) for x in tensors]
            raise RuleBroken(f"{operation} on tensors of the CPU and the GPU: {shapes}")
        masks = name in INDEXED and any(x.dtype in (torch.bool, torch.uint8) for x in tensors_in(args[1]))
        if name in READS or masks:
            self.wait(name)
        if name == "_local_scalar_dense":
            with unset_fake_temporarily():
                return self.answer(args[0]).item()
        out = self._run(operation, name, args, kwargs, tensors)
        outs = [x for x in tensors_in(out) if is_fake(x) and x.device.type == "cuda"]
        if len(self.waits) > waits:  # when the host goes on, the result is there for every stream
            return out
        if not (operation.is_view or name in NO_KERNEL):
            self.launches += 1 if name != "_fused_sgd_" else 1 + len(args[0]) // TENSORS_OF_A_FUSED_KERNEL
            self.operations[name] += 1
            touched = [*outs, *outs] if name in ("index", "gather") else [*on_gpu, *outs]  # reads only what it picks
            touched = [args[-1]] * 2 if name == "index_copy_" else touched
            self.moved += sum(min(x.numel() * x.element_size(), x.untyped_storage().nbytes()) for x in touched)
        self._note(operation, outs, args)
        return out

    def _check_copy(self, name, args, target, to_gpu, asynchronous):
        """Refuses a copy that makes the host wait; returns what a copy to the CPU gives, else None."""
        source = args[1] if name == "copy_" else args[0]
        if source.device.type == "cpu":
            if self.key(source) not in self.pinned or not source.is_contiguous():
                self.wait(f"copy of {tuple(source.shape)} to the GPU from memory that is not pinned")
            elif not asynchronous:
                self.wait(f"copy of {tuple(source.shape)} to the GPU without non_blocking=True")
        elif (target is not None and not to_gpu) or (name == "copy_" and args[0].device.type == "cpu"):
            if asynchronous:
                raise RuleBroken(f"a copy of {tuple(source.shape)} to the CPU that nobody waits for")
            self.wait(f"copy of {tuple(source.shape)} to the CPU")
            with unset_fake_temporarily():
                answer = self.answer(source)
                return args[0].copy_(answer) if name == "copy_" else answer
        return None

    def _run(self, operation, name, args, kwargs, tensors):
        """The result of an operation on `tensors`, which stand in its arguments, as fake tensors."""
        for x in filter(is_fake, tensors):
            x.constant = None  # else FakeTensorMode would go on computing with it, on a GPU that is not there
        if not all(map(is_fake, tensors)):
            args, kwargs = tree_map_only(torch.Tensor, self._without_values, (args, kwargs))
        if name == "_fused_sgd_":  # torch has no rule for its result; it takes its tensors as flat memory
            parameters, *others = (x for x in args if isinstance(x, list))
            for p, *rest in zip(parameters, *(tensors for tensors in others if tensors), strict=True):
                if any(dense_strides(x) != dense_strides(p) for x in rest):
                    strides = [(tuple(x.shape), x.stride()) for x in (p, *rest)]
                    raise RuleBroken(f"fused SGD on tensors of unequal layouts: {strides}")
            return None
        try:
            return operation(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            self.wait(name)
            raise

    def _without_values(self, x):
        if is_fake(x):
            return x
        with unset_fake_temporarily():
            return self.fake.from_tensor(x, static_shapes=True)

    def _check_streams(self, operation, tensors):
        here = self.stream
        for x in tensors:
            key = self.key(x)
            writer, moment = self.written.get(key, (here.name, 0))
            if here.clock[writer] < moment and writer != here.name:
                raise RuleBroken(
                    f"{operation} on {here.name} uses {tuple(x.shape)}, written on {writer}, without a wait"
                )
            home = self.home.get(key, here.name)
            if home != here.name and here.name not in self.recorded.get(key, ()):
                raise RuleBroken(f"{operation} on {here.name} uses memory of {home} without record_stream")

    def _note(self, operation, outs, args):
        """Notes on which stream memory was allocated and written."""
        here = self.stream
        here.clock[here.name] += 1
        schema = operation._schema.arguments
        changed = [a for a, s in zip(args, schema, strict=False) if s.alias_info and s.alias_info.is_write]
        for x in [*outs, *filter(is_fake, tensors_in(changed))]:
            key = self.key(x)
            if not operation.is_view:
                self.home.setdefault(key, here.name)
                self.written[key] = here.name, here.clock[here.name]


def tensors_in(x):
    """Yields the tensors of nested lists, tuples and dicts; much faster than torch's tree_leaves."""
    if isinstance(x, torch.Tensor):
        yield x
    elif isinstance(x, (list, tuple, dict)):
        for part in x.values() if isinstance(x, dict) else x:
            yield from tensors_in(part)


def is_fake(x):
    """Whether `x` is a FakeTensor."""
    return isinstance(x, FakeTensor)


def dense_strides(x):
    """The strides of all dimensions longer than 1; they say where in memory an element lies."""
    return [stride for n, stride in zip(x.shape, x.stride(), strict=True) if n > 1]
