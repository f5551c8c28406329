import pytest

from moco.data.file_extensions import folder_of, is_archive, is_image


@pytest.mark.parametrize(
    "name, image, archive, folder",
    [
        ("n01440764.tar", False, True, "n01440764"),
        ("a.b.TAR", False, True, "a.b"),
        ("cat.tar.gz", False, True, "cat"),
        ("cat.tgz", False, True, "cat"),
        ("checkpoint__0099.pth.tar", False, False, "checkpoint__0099.pth"),
        ("1.JPEG", True, False, "1.JPEG"),
        ("notes.zip", False, False, "notes.zip"),
    ],
)
def test_kinds_of_files_and_the_folders_that_archives_stand_for(name, image, archive, folder):
    assert (is_image(name), is_archive(name), folder_of(name)) == (image, archive, folder)
