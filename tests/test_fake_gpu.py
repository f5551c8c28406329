"""The fake GPU notices what it is for: each rule by a line that breaks it, and bugs planted into the project."""

import json
import subprocess
import sys

import pytest
import torch

from tests.fake_gpu import CUDA, FakeGPU, RuleBroken
from tests.fake_nccl import FakeNCCL
from tests.planted_bugs import BUGS, CRASH, ROOT


@pytest.fixture
def gpu():
    with FakeGPU() as gpu:
        yield gpu


BREAKS = {
    "a tensor of the CPU": lambda x: x + torch.ones(3),
    "an index of the CPU": lambda x: x[torch.tensor([0, 2])],
    "a value": lambda x: x[0].item(),
    "an if": lambda x: 1 if x[0] > 0 else 0,
    "nonzero": lambda x: x.nonzero(),
    "a mask": lambda x: x[x > 0],
    "a mask to write": lambda x: x.__setitem__(x > 0, 1.0),
    "a copy to the CPU": lambda x: x.cpu(),
    "a list": lambda x: x.tolist(),
    "a copy into the CPU": lambda x: torch.empty(3).copy_(x),
    "a copy that is not pinned": lambda x: torch.ones(3).to(CUDA, non_blocking=True),
    "a constant": lambda x: torch.tensor([1.0, 2.0], device=CUDA),
    "synchronize": lambda x: torch.cuda.synchronize(),
    "an event": lambda x: torch.cuda.Event().synchronize(),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_rule_is_noticed(gpu, name):
    x = torch.zeros(3, device=CUDA)
    with pytest.raises(RuleBroken):
        BREAKS[name](x)


def test_what_is_allowed_passes(gpu):
    x = torch.zeros(3, device=CUDA)
    y = (x * 2 + torch.tensor(1.0)).sum()  # a scalar of the CPU is an argument of the kernel
    z = torch.ones(3).pin_memory().to(CUDA, non_blocking=True)
    assert (x + y + z).device == CUDA and gpu.waits == [] and gpu.late_pins == [(3,)]
    real = torch.arange(4)
    assert real[real > 1].tolist() == [2, 3]  # the CPU computes with real values


def test_waits_can_be_counted_and_answered(gpu):
    gpu.answer = lambda x: torch.full(x.shape, 7, dtype=x.dtype)
    x = torch.zeros(2, device=CUDA)
    with gpu.waits_allowed() as waits:
        assert x.tolist() == [7, 7] and x[0].item() == 7
    assert len(waits) == 2 and "the test" in waits[0]


def side_stream(wait, record):
    side, main = torch.cuda.Stream(), torch.cuda.current_stream()
    with torch.cuda.stream(side):
        x = torch.zeros(3, device=CUDA)
    if wait:
        main.wait_stream(side)
    if record:
        x.record_stream(main)
    return x + 1


@pytest.mark.parametrize("wait, record, message", [(False, True, "without a wait"), (True, False, "record_stream")])
def test_another_stream_needs_a_wait_and_a_record(gpu, wait, record, message):
    with pytest.raises(RuleBroken, match=message):
        side_stream(wait, record)
    side_stream(True, True)


def test_launches_bytes_and_memory_are_counted(gpu):
    x = torch.zeros(1000, device=CUDA)
    y = (x + 1)[:10]  # a view, which keeps all of its memory
    assert gpu.launches == 2 and gpu.moved == 4000 + 2 * 4000 and gpu.live == gpu.peak == 8000
    del x, y
    assert gpu.live == 0 and gpu.peak == 8000
    gpu.reset()
    assert gpu.launches == gpu.moved == gpu.peak == 0


def test_a_step_trains_on_it(gpu):
    with gpu.waits_allowed():
        net = torch.nn.Linear(4, 2).to(CUDA)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, fused=True)
    for _ in range(2):
        net(torch.zeros(3, 4, device=CUDA)).sum().backward()
        optimizer.step()
    assert gpu.operations["_fused_sgd_"] == 2
    optimizer.state[net.weight]["momentum_buffer"] = torch.zeros(4, 2, device=CUDA).t()
    with pytest.raises(RuleBroken, match="unequal layouts"):
        optimizer.step()


@pytest.mark.parametrize(
    "send, message",
    [
        (lambda nccl: nccl.all_reduce(torch.zeros(3)), "sends no tensor of the CPU"),
        (lambda nccl: nccl.all_reduce(torch.zeros(3, 4, device=CUDA).t()), "not contiguous"),
        (lambda nccl: nccl.all_gather_single(torch.zeros(4, device=CUDA), torch.zeros(2, device=CUDA)), "sizes"),
        (
            lambda nccl: nccl.all_gather_single(torch.zeros(8, device=CUDA), torch.zeros(2, device=CUDA).half()),
            "several types",
        ),
        (
            lambda nccl: nccl.all_to_all_single(*(torch.zeros(4, device=CUDA) for _ in "ab"), [1, 3], [2, 2]),
            "sizes",
        ),
    ],
)
def test_nccl_takes_no_other_tensors(gpu, send, message):
    with pytest.raises(RuleBroken, match=message):
        send(FakeNCCL(4, 0))


@pytest.fixture(scope="module")
def found():
    """What the checks say of each planted bug."""
    command = [sys.executable, "-m", "tests.planted_bugs"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BUGS if name != "none"])
def test_a_planted_bug_is_found(name, found):
    assert found["none"] is None, "the checks must accept the project as it is"
    said = found[name]
    assert said and not said.startswith(CRASH), said
