"""ranks: what is known about a program that hangs."""

import os
import sys
import time

import pytest

from moco.engine.launch_plan import Launch
from moco.engine.launch_processes import start_processes
from tests.ranks import Program, gone, quick_launches


def never_ends(_):
    os.write(2, b"began\n")  # at once; print could mix the lines of both processes
    time.sleep(600)


def two_processes():
    with quick_launches():
        start_processes(never_ends, Launch("spawn", local=2, backend="gloo"))


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_program_that_takes_too_long_tells_what_its_processes_do():
    program = Program(two_processes)
    assert [program.stderr.readline() for _ in range(2)] == ["began\n"] * 2
    with pytest.raises(TimeoutError) as error:
        program.finish(2)
    text = str(error.value)
    assert text.startswith("a program did not end within 2 s: ")
    assert text.count("in never_ends\n") == 2 and text.count("in _supervise\n") == 1
    assert program.wait() < 0 and gone(program.pid)
