import subprocess
import sys

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_benchmark_prints_its_table():
    command = [sys.executable, "-m", "moco.tools.bench_file_list", "--images"]
    result = subprocess.run([*command, "3000"], capture_output=True, text=True)
    ours, theirs = (line.split() for line in result.stdout.splitlines()[-2:])
    assert ours[0] == "arrays" and theirs[0] == "list"
    assert 30 < float(ours[-2]) < float(theirs[-2])
    refused = subprocess.run([*command, "3"], capture_output=True, text=True)
    assert refused.returncode == 2 and "--images 3 is too few" in refused.stderr
