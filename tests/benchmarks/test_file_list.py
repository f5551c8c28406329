import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from moco.benchmarks import file_list

COMMAND = [sys.executable, "-m", "moco.benchmarks.file_list"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_benchmark_prints_its_figures():
    small = ["--images", "30000", "--workers", "2", "--files", "1000"]
    result = subprocess.run([*COMMAND, *small], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    files, archive, theirs = (
        float(re.search(rf"^{name} .*?([\d.]+) +[-\d.]+$", result.stdout, flags=re.MULTILINE)[1])
        for name in ("arrays, files", "arrays, tar", "list \\(torchvision\\)")
    )
    assert max(files, archive) < theirs  # with so few images, memory that was freed hides a part of the second
    for line in ("1000 real files without a cache", "1000 real files from the cache", "30000 images from the cache"):
        assert re.search(rf"^{line}: [\d.]+ s$", result.stdout, flags=re.MULTILINE)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_its_progress_is_not_in_the_table(monkeypatch, impatient, call):
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # is set, and then restored
    monkeypatch.setattr(file_list, "CHUNK", 400)
    monkeypatch.setattr(file_list, "CLASSES", 10)
    code, out, error = call(file_list.main, "--images", "1000", "--workers", "2", "--files", "20")
    assert code == 0 and " left" not in out
    made_and_read = [line for line in error.splitlines() if "made and read" in line]
    done = [int(line.split()[1].replace(",", "")) for line in made_and_read]
    assert len(done) == 20 and done == sorted(done) and all(" of 9,000 entries" in line for line in made_and_read)
    assert [done[i] for i in (0, 6, 7, 13, 14)] == [1000, 3000, 4000, 6000, 7000]
    assert "file_list: 10 of 20 files created (50%), 0:00:0" in error


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "flags, message",
    [
        (["--images", "3"], "'3' is not an integer >= 1000 and <= 10000000000"),
        (["--images", "1e6"], "'1e6' is not an integer"),
        (["--images", "9999999999"], "--images 9999999999 with --workers 16 needs 13,700 GB, but the memory has"),
        (["--files", "0"], "'0' is not an integer >= 1000 and <= 10000000"),
        (["--files", "2000"], "--files 2000 does not fit into '/tmp', which has room for 2999 files; give fewer"),
        (["--workers", "0"], "'0' is not an integer >= 1 and <= 1024"),
    ],
)
def test_numbers_that_it_refuses(flags, message, call, monkeypatch):
    monkeypatch.setattr(file_list, "own_memory", lambda: pytest.fail("it worked"))
    monkeypatch.setattr(file_list.tempfile, "gettempdir", lambda: "/tmp")
    monkeypatch.setattr(file_list.os, "statvfs", lambda path: SimpleNamespace(f_favail=2999, f_files=10**6))
    code, out, error = call(file_list.main, *flags)
    assert code == 2 and not out and error.count("\n") == 1 and message in error
