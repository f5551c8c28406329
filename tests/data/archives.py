"""Makes tar archives of folders for tests."""

import io
import os
import tarfile


def packed(folder, path, top=".", format=tarfile.PAX_FORMAT):
    """Packs a folder into the uncompressed tar `path` under the name `top`, the last names first; returns the path."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for above, _, files in os.walk(folder):
            inside = os.path.join(top, os.path.relpath(above, folder)) if above != os.fspath(folder) else top
            archive.add(above, inside, recursive=False)
            for file in sorted(files, reverse=True):
                archive.add(os.path.join(above, file), f"{inside}/{file}")
    return path


def packed_classes(folder, target, inside="{}"):
    """Packs each folder in `folder` into a tar of its own in `target`; returns `target`."""
    for name in os.listdir(folder):
        packed(os.path.join(folder, name), os.path.join(target, f"{name}.tar"), inside.format(name))
    return target


def archive_of(path, *members, format=tarfile.PAX_FORMAT):
    """Writes a tar of (name, data) or TarInfo; returns the path."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member[0])
            data = b"" if info is member else member[1]
            info.size = info.size if info is member else len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def link(name, target, kind=tarfile.SYMTYPE):
    """A TarInfo of a link."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info
