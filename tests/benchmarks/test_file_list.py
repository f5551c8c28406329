import re
import subprocess
import sys

import pytest

from moco.benchmarks import file_list

COMMAND = [sys.executable, "-m", "moco.benchmarks.file_list"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_benchmark_prints_its_figures():
    small = ["--images", "30000", "--workers", "2", "--files", "1000"]
    result = subprocess.run([*COMMAND, *small], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    ours, theirs = (
        float(re.search(rf"^{name} .*?([\d.]+) +[-\d.]+$", result.stdout, flags=re.MULTILINE)[1])
        for name in ("arrays", "list \\(torchvision\\)")
    )
    assert ours < theirs
    for line in ("1000 real files without a cache", "1000 real files from the cache", "30000 images from the cache"):
        assert re.search(rf"^{line}: [\d.]+ s$", result.stdout, flags=re.MULTILINE)


def test_bad_numbers_are_refused(call):
    code, _, error = call(file_list.main, "--images", "3")
    assert code == 2 and "--images and --files must be 1000 or more" in error
