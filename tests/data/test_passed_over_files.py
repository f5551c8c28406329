"""What is passed over, in words."""

import pytest

from moco.data.passed_over_files import BROKEN, EMPTY, EMPTY_ARCHIVES, HIDDEN, OUTSIDE, PACKED, PassedOver, extension


@pytest.mark.parametrize(
    "counts, clause",
    [
        ({}, ""),
        ({".txt": 2, ".xml": 1, HIDDEN: 2}, "; passed over: 3 files with other extensions (.txt, .xml), 2 hidden"),
        ({".txt": 1, HIDDEN: 0}, "; passed over: 1 file with another extension (.txt)"),
        ({OUTSIDE: 1, BROKEN: 1}, "; passed over: 1 file outside the class folders, 1 broken link"),
        ({OUTSIDE: 4, BROKEN: 2}, "; passed over: 4 files outside the class folders, 2 broken links"),
        (
            {".a": 1, "": 9, ".c": 3, ".d": 2},
            "; passed over: 15 files with other extensions (none, .c, .d)",
        ),
        ({PACKED: 1, EMPTY: 2}, "; passed over: 1 archive beside unpacked images, 2 folders without images"),
        ({EMPTY: 1, EMPTY_ARCHIVES: 2}, "; passed over: 1 folder without images, 2 archives without images"),
        ({".\x1b[1m": 1}, "; passed over: 1 file with another extension ('.\\x1b[1m')"),
        ({".\udcff": 1}, "; passed over: 1 file with another extension ('.\\udcff')"),
    ],
)
def test_the_clause_counts_by_reason(counts, clause):
    assert PassedOver.of(counts).clause() == clause


def test_extensions_are_compared_in_lower_case():
    assert [extension(name) for name in ("a.TXT", "a.tar.gz", "README")] == [".txt", ".gz", ""]
