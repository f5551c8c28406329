"""Lists the images of a folder or an archive: which files are images, in which order, and with which labels."""

import json
import os
from array import array
from collections import Counter
from operator import itemgetter

import numpy as np

from moco.data import file_list_cache
from moco.data.file_extensions import folder_of, is_archive, is_image, training_and_validation
from moco.data.folder_walk import Listing, enclosing_folders, missing_target, scan, walk
from moco.data.passed_over_files import (
    BROKEN,
    EMPTY,
    EMPTY_ARCHIVES,
    HIDDEN,
    OUTSIDE,
    PACKED,
    PassedOver,
    extension,
    no_images,
    plural,
)
from moco.data.shard_labels import LABEL, has_labels, images_with_labels
from moco.data.string_array import StringArray
from moco.data.tar_headers import ArchiveError
from moco.data.tar_index import TarTree
from moco.data.tar_read import beginning


def list_images(root, any_tree=False, labels=True):
    """Lists the images of `root`. If it takes long, it prints its progress to standard error.

    Args:
        any_tree, labels: as for ImageFolder.

    Returns:
        arrays: a dict of `paths` (uint8, all paths relative to `root` or to their archive, concatenated), `ends`
            (int64, length n + 1: 0, then the offset at which each path ends), `labels` (int32), `classes` (uint8, the
            names separated by zero bytes), `passed_over` (uint8, the values of a PassedOver as JSON), `labelled`
            (bool, whether each image and each class folder has what a labelled use needs), `unlabelled` (bool, whether
            a use without labels would list the same); and, if there are archives, those of ArchivedImages.
        states: for the cache, a list of (folder or archive relative to `root`, its state before it was listed).

    Raises:
        OSError: as ImageFolder.
    """
    return ImageList(root, any_tree, labels).finish()


class ImageList:
    """A list that is being made. Arguments as of `list_images`."""

    def __init__(self, root, any_tree, labels):
        self.root, self.beginning = root, beginning(root)
        self.any_tree, self.needs_labels = any_tree, labels and not any_tree
        self.listing, self.states, self.passed_over = Listing(root), [], Counter()
        self.paths, self.ends, self.labels, self.classes = bytearray(), array("q", [0]), array("i"), []
        self.archive, self.offset, self.size = array("i"), array("q"), array("Q")
        self.unlabelled = True
        self.archives, self.files = {}, {}  # (name, index of its file) and (state) by path relative to the root
        if os.path.isdir(root):
            self.states.append((b".", file_list_cache.state_of(root, b".")))
            top, above = scan(root, self.listing), enclosing_folders(root)
            links = dict(top.folders)
            self.list_classes(top, {name: walk(self.listing, name, links[name], above, self.states) for name in links})
            return
        tree = self.open_file("")
        if has_labels(everything(*tree.below(), "")):
            self.add_shard(list(everything(*tree.below(), "")))
            self.rename_labels()
        else:
            self.list_classes(*tree.below())

    def list_classes(self, top, below):
        """Lists all classes, and the images outside of them; arguments as `TarTree.below` returns them."""
        loose = sorted(filter(is_image, top.files))
        archives = sorted(filter(is_archive, top.files), key=lambda file: (folder_of(file), file))  # as the folders
        self.check_top(top, loose, archives)
        everywhere = Counter({HIDDEN: top.hidden, BROKEN: len(top.broken)})  # in an archive, those of all classes
        self.passed_over += everywhere
        if self.any_tree:
            self.add([("", file, top) for file in loose], -1)
        for name in sorted(top.folders):
            whole = () if top.tree is None else everywhere
            self.add_class(name, self.shown(name), *self.images_of(below[name]), EMPTY, whole)
        images_win = bool(loose) and (self.any_tree or len(loose) >= len(archives))
        if self.classes or (images_win and not self.needs_labels):
            self.passed_over += Counter({PACKED: len(archives)})
        else:
            self.unlabelled = not images_win
            self.add_archives(archives, top)
        others = [file for file in top.files if not is_archive(file)]
        if self.any_tree or not self.labels:
            if not self.any_tree:
                self.add([("", file, top) for file in loose], -1)
            self.passed_over += Counter(extension(file) for file in others if not is_image(file))
        else:
            self.passed_over += Counter({OUTSIDE: len(others)})
        if not self.labels:
            raise no_images(self.root, self.passed_over, "add some")

    def check_top(self, top, loose, archives):
        """Raises FileNotFoundError if there are no class folders where labels are needed, or one may be lost."""
        if top.tree is not None and top.folders and set(top.folders) <= {"train", "val", "test"} and not self.any_tree:
            raise ArchiveError(
                f"{self.root!r} holds {' and '.join(sorted(top.folders))}; make an archive of each, such as train.tar "
                "and val.tar, and give the folder that holds them"
            )
        if top.tree is None and not self.any_tree:
            for name in sorted(top.broken):
                if self.needs_labels or not is_image(name):
                    raise FileNotFoundError(missing_target(os.path.join(self.root, name)))
        if top.folders or archives or not self.needs_labels:
            return
        if loose:
            where = "folder" if top.tree is None else "archive"
            raise FileNotFoundError(
                f"{self.root!r} holds {plural(len(loose), 'image')} but no class folders, from which the labels come; "
                f"put the images of each class into a folder in this {where}, such as {self.shown('cat')!r}"
            )
        others = PassedOver.of({HIDDEN: top.hidden, OUTSIDE: len(top.files)})
        raise FileNotFoundError(
            f"no class folders in {self.root!r}; it must hold one folder of images per class{others.clause()}"
        )

    def shown(self, name):
        """How messages call the folder or archive `name` in the root."""
        return self.beginning + ("" if os.path.isdir(self.root) else "!") + name

    def add_class(self, name, source, images, passed_over, empty, whole=()):
        """Adds a class with its images; raises FileNotFoundError if there are none, but labels are needed.

        Args:
            name: of the class. source: its folder or archive for the messages.
            images, passed_over: as `images_of` returns them. empty: the reason that counts a class without images.
            whole: for `no_images`.
        """
        if not images and self.needs_labels:
            raise no_images(source, passed_over, "remove it or add some", whole)
        self.passed_over += passed_over + Counter({empty: not images and not self.any_tree})
        if images:
            self.add(images, len(self.classes))
            self.classes.append(name)

    def add_archives(self, archives, top):
        """Adds the archives in the root, names of files: shards with labels, or one class for each.

        Raises:
            ArchiveError: two of them stand for one class; or some are for training, and others for validation.
        """
        if (mixed := training_and_validation(archives)) and not self.any_tree:
            raise ArchiveError(
                f"{self.root!r} holds {mixed[0]!r} and {mixed[1]!r}, which seem to be for training and for validation"
                "; link the first as train.tar in another folder (several of them into a folder train there) and give "
                "that one; if it is a class, rename it"
            )
        shards = None
        for file in archives:
            name, contents = folder_of(file), list(self.contents_of(("", file, top), folder_of(file)))
            shards = has_labels(contents) if shards is None else shards
            if shards:
                self.add_shard(contents)
            elif name in self.classes[-1:]:
                raise ArchiveError(
                    f"{self.shown(file)!r} stands for the class {name!r}, as another archive does; rename one of them"
                )
            else:
                self.add_class(name, self.shown(file), *self.images_of(contents), EMPTY_ARCHIVES)
        if shards:
            self.rename_labels()

    def add_shard(self, contents):
        """Adds the images of a shard, a list of (folder, Content), with the numbers in its .cls files as labels."""
        for image, label in images_with_labels(contents):
            if label is None and self.needs_labels:
                raise FileNotFoundError(
                    f"the image {named(*image)!r} has no label; put a file of the same name beside it, with the "
                    "extension .cls and a number in it"
                )
            self.add([image], -1 if label is None else label)
        for _, content in contents:
            self.passed_over += Counter({HIDDEN: content.hidden, BROKEN: len(content.broken)})
            others = (file for file in content.files if not is_image(file) and extension(file) != LABEL)
            self.passed_over += Counter(map(extension, others))

    def rename_labels(self):
        """Replaces the numbers in .cls files, which are the names of the classes, by indices into the classes."""
        numbers = np.frombuffer(self.labels, dtype=np.int32)
        names = np.unique(numbers[numbers >= 0])
        self.classes = [str(name) for name in names]
        indices = np.where(numbers >= 0, np.searchsorted(names, numbers), -1)
        self.labels = array("i", indices.astype(np.int32).tobytes())

    def images_of(self, contents):
        """The images of one class. Archives count only where there are no unpacked images.

        Args:
            contents: iterable of (folder, Content), as `walk` yields them.

        Returns:
            A list of (folder, file, Content) in torchvision's order, and what is passed over: a Counter for
            `PassedOver.of`.
        """
        passed_over = Counter()
        while True:
            images, archives = [], []
            for folder, content in sorted(contents, key=itemgetter(0)):
                passed_over += Counter({HIDDEN: content.hidden, BROKEN: len(content.broken)})
                for file in sorted(content.files):
                    if is_image(file):
                        images.append((folder, file, content))
                    elif is_archive(file):
                        archives.append((folder, file, content))
                    else:
                        passed_over[extension(file)] += 1
            if images or not archives:
                return images, passed_over + Counter({PACKED: len(archives)})
            places = [(archive, os.path.join(archive[0], folder_of(archive[1]))) for archive in archives]
            contents = [content for archive, place in places for content in self.contents_of(archive, place)]

    def contents_of(self, archive, place):
        """Yields (folder, Content) for an archive, (folder, file, Content), as if it were the folder `place`."""
        folder, file, content = archive
        if content.tree is None:
            tree = self.open_file(os.path.join(folder, file))
        else:
            tree = content.tree.inner(content.files[file], os.path.join(content.inside, file), self.listing)
        return everything(*tree.below(), place)

    def open_file(self, path):
        """The TarTree of a file; `path` is relative to the root, or empty for the root itself."""
        name = os.fsencode(path)
        self.states.append((name, file_list_cache.state_of(self.root, name)))
        return TarTree(self.beginning + path, self.beginning + path, self.listing)

    def add(self, images, label):
        """Appends images to the list; each is (folder, file, Content)."""
        for folder, file, content in images:
            tree = content.tree
            self.paths += os.fsencode(os.path.join(folder if tree is None else content.inside, file))
            self.ends.append(len(self.paths))
            self.labels.append(label)
            number = None if tree is None else content.files[file]
            self.archive.append(-1 if tree is None else self.index_of(tree))
            self.offset.append(0 if tree is None else tree.offsets[number])
            self.size.append(0 if tree is None else min(tree.sizes[number], 2**32 - 1))

    def index_of(self, tree):
        """The index of an archive in the tables of ArchivedImages."""
        name, path = tree.name[len(self.beginning) :], tree.path[len(self.beginning) :]
        if name not in self.archives:
            self.files.setdefault(path, (len(self.files), tree.state))
            self.archives[name] = len(self.archives), self.files[path][0]
        return self.archives[name][0]

    def finish(self):
        """What `list_images` returns."""
        labels = np.array(self.labels, dtype=np.int32)
        arrays = {
            "paths": np.frombuffer(bytes(self.paths), dtype=np.uint8),
            "ends": np.array(self.ends, dtype=np.int64),
            "labels": labels,
            "classes": np.frombuffer(b"\0".join(map(os.fsencode, self.classes)), dtype=np.uint8),
            "passed_over": np.frombuffer(json.dumps(PassedOver.of(self.passed_over)).encode(), dtype=np.uint8),
            "labelled": np.array(
                not self.any_tree and labels.min() >= 0 and not self.passed_over.keys() & {EMPTY, EMPTY_ARCHIVES}
            ),
            "unlabelled": np.array(self.unlabelled),
        }
        if self.archives:
            archives, files = StringArray.of(self.archives), StringArray.of(self.files)
            arrays |= {"archives": archives.data, "archives_ends": archives.ends, "files": files.data}
            arrays |= {
                "files_ends": files.ends,
                "files_states": np.array([state for _, state in self.files.values()], dtype=np.int64),
                "archives_file": np.array([file for _, file in self.archives.values()], dtype=np.int32),
                "archive": np.array(self.archive, dtype=np.int32),
                "offset": np.array(self.offset, dtype=np.int64),
                "size": np.array(self.size, dtype=np.uint32),
            }
        return arrays, self.states


def everything(top, below, place):
    """Yields (folder, Content) for an archive as if it were the folder `place`; arguments as of `list_classes`."""
    yield place, top
    yield from ((os.path.join(place, path), content) for contents in below.values() for path, content in contents)


def named(_folder, file, content):
    """How messages call a file in an archive."""
    return f"{content.tree.name}!{os.path.join(content.inside, file)}"
