"""The command line of every program: a parser that reports an error in one line, and converters that check a value."""

import argparse
import difflib
import itertools
import math
import os
import re
import sys

FEW = 8  # choices that an error lists


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that prints an error as one line, once per node, and exits with code 2.

    Args:
        description: text for --help; its lines are kept.
        module: the module that `python -m` starts; None for a script, which is started by its path.
        example: arguments that work; an error about a missing argument shows them.
    """

    def __init__(self, description=None, module=None, example=""):
        prog = module and f"python -m {module}"
        super().__init__(prog, description=description, formatter_class=_HelpFormatter, allow_abbrev=False)
        self.example = f"{prog or f'python {self.prog}'} {example}"
        self.settle = []  # functions that change the parsed options, or raise ValueError
        self._negative_number_matcher = re.compile(r"-(\d|\.\d|inf|nan)")  # also -1e-5, so that its value is refused

    def parse_args(self, args=None, namespace=None):
        """As in argparse; but an unknown flag is reported before anything else, with the flag that is most similar."""
        words = sys.argv[1:] if args is None else list(args)
        for word in itertools.takewhile(lambda word: word != "--", words):
            self._check_flag(word)
        args = super().parse_args(words, namespace)
        try:
            for settle in self.settle:
                settle(args)
        except ValueError as error:
            self.error(error)
        return args

    def _check_flag(self, word):
        name, flags = word.partition("=")[0], self._option_string_actions
        is_flag = re.match(r"-\S+$", word) and not self._negative_number_matcher.match(word)
        if not is_flag or name in flags or (word[1] != "-" and word[:2] in flags):
            return
        known = [flag for flag in flags if flag not in ("-h", "--help")]
        meant = {flag.replace("--enable-", "--"): flag for flag in known} | {flag: flag for flag in known}
        similar = nearest(name.replace("_", "-"), meant)
        guess = f"; did you mean {meant[similar]}?" if similar else ";"
        self.error(f"unknown flag {name}{guess} --help lists all flags")

    def _check_value(self, action, value):
        """Replaces argparse's check of `choices`, whose message lists all of them, however many they are."""
        choices = action.choices
        if choices is None or value in choices:
            return
        similar = nearest(value, choices)
        guess = f"; did you mean {similar}?" if similar else ";"
        rest = f"give one of {', '.join(choices)}" if len(choices) <= FEW else f"--help lists all {len(choices)}"
        raise argparse.ArgumentError(action, f"invalid choice: {value!r}{guess} {rest}")

    def error(self, message):
        """Exits with code 2; only the first process of this node prints the message."""
        line = " ".join(str(message).split())
        if line.startswith("the following arguments are required"):
            name = line.partition(": ")[2].split(", ")[0]
            missing = next(x for x in self._actions if name == ("/".join(x.option_strings) or x.metavar or x.dest))
            line = f"{name} is missing; give the {missing.help}; for example: {self.example}"
        elif line.startswith("unrecognized arguments: "):  # not flags, which are checked before
            word = line.removeprefix("unrecognized arguments: ").split()[0]
            line = f"{word!r} is one argument too many; repeat a flag to give it several values; --help lists all"
        if not os.environ.get("LOCAL_RANK", "").lstrip("0").isdecimal():
            print(f"{self.prog}: error: {line}", file=sys.stderr, flush=True)
        sys.exit(2)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the default of each flag, unless it is None, False or empty."""

    def _get_help_string(self, action):
        silent = action.default in ("", []) or any(action.default is value for value in (None, False))
        return action.help if silent else super()._get_help_string(action)


def nearest(word, choices):
    """The one of `choices` that is most similar to `word`, regardless of case; None if none is similar."""
    by_lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(word.lower(), by_lower, 1)
    return by_lower[found[0]] if found else None


def number(kind, low=-math.inf, high=math.inf, exclusive=False):
    """Makes a converter for argparse: to a finite int or float within [low, high], or (low, high] if `exclusive`.

    The converter raises ArgumentTypeError, with the bounds, for any other text.
    """

    def convert(text):
        try:
            value = kind(text)
            valid = math.isfinite(value) and low <= value <= high and not (exclusive and value == low)
        except (ValueError, OverflowError):
            valid = False
        if not valid:
            bounds = [f"{'>' if exclusive else '>='} {low}"] * (low > -math.inf) + [f"<= {high}"] * (high < math.inf)
            noun = "an integer" if kind is int else "a finite number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {noun} {' and '.join(bounds)}".rstrip())
        return value

    return convert


SEED = number(int, 0, 2**63 - 1)
PROCESSES = number(int, 1, 1024)
SECONDS = number(float, 0, 10**6, exclusive=True)


def writable_folder(text):
    """Converter for argparse: the path of a folder that exists and can be written to."""
    if not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no folder; give one that exists")
    return _writable(text, text)


def output_folder(text):
    """Converter for argparse: the path of a folder that can be written to, or made."""
    try:
        place = existing_part(text)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} can't be made: {error.strerror}; give another") from None
    if not text or not os.path.isdir(place):
        raise argparse.ArgumentTypeError(f"{text!r} is no folder; give a folder, which may be a new one")
    return _writable(text, place)


def existing_part(path):
    """The deepest existing part of a path, as an absolute path; raises OSError if the path can't be followed."""
    place = os.path.abspath(path)
    while True:
        try:
            os.stat(place)
            return place
        except FileNotFoundError:
            place = os.path.dirname(place)


def output_file(*extensions):
    """Makes a converter for argparse: to the path of a file in an existing folder, with one of the extensions."""

    def convert(text):
        folder = os.path.dirname(text) or "."
        if not text.lower().endswith(extensions) or os.path.isdir(text):
            names = " or ".join(extensions)
            raise argparse.ArgumentTypeError(f"{text!r} is no file to write; give a name that ends in {names}")
        if not os.path.isdir(folder):
            raise argparse.ArgumentTypeError(f"{text!r} can't be written: {folder!r} is no folder; make it first")
        return _writable(text, text if os.path.exists(text) else folder)

    return convert


def _writable(text, place):
    if not os.access(place, os.W_OK | os.X_OK * os.path.isdir(place)):
        raise argparse.ArgumentTypeError(f"{text!r} can't be written, since {place!r} is not writable; give another")
    return text
