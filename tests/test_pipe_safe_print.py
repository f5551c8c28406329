"""Lines for whoever watches, and nobody who does."""

import os
import sys

from moco.pipe_safe_print import say


def test_lines_go_where_they_belong(capsys):
    say("a")
    say("b", error=True)
    assert capsys.readouterr() == ("a\n", "b\n")


def test_a_reader_that_is_gone_ends_nothing(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        for _ in range(3):
            say("a line")
        print("another line", flush=True)  # other code's


def test_a_stream_that_is_no_file_ends_nothing_either(monkeypatch):
    class Broken:
        def write(self, text):
            raise BrokenPipeError

        def fileno(self):
            raise OSError

    monkeypatch.setattr(sys, "stdout", Broken())
    say("a line")
