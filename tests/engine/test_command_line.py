"""The parser's errors are one line with a way out; numbers, folders and files are checked."""

import os

import pytest

import main_lincls
import main_moco
from moco.benchmarks import loader
from moco.engine.command_line import Parser, nearest, number, output_file, output_folder, writable_folder


def said(call, parser, *words):
    """The one line that a parser prints about a bad command line."""
    code, out, error = call(parser.parse_args, *words)
    assert code == 2 and not out and error.count("\n") == 1 and error.startswith(f"{parser.prog}: error: ")
    return error


@pytest.mark.parametrize(
    "flag, meant",
    [
        ("--multicrop", "--enable-multicrop"),
        ("--moco_k", "--moco-k"),
        ("--moco_k=3", "--moco-k"),
        ("--batchsize", "--batch-size"),
        ("--asym-bn", "--enable-asym-bn"),
        ("--ScaleMix", "--enable-scalemix"),
        ("--enable-multi-crop", "--enable-multicrop"),
    ],
)
@pytest.mark.parametrize("data", [["D"], []])
def test_an_unknown_flag_names_the_one_that_was_meant(flag, meant, data, call):
    line = said(call, main_moco.build_parser(), flag, "7", *data)
    assert line.endswith(f"unknown flag {flag.partition('=')[0]}; did you mean {meant}? --help lists all flags\n")


@pytest.mark.parametrize("flag", ["--zzzqq", "-x", "--zz=1"])
def test_a_flag_like_no_other_is_only_called_unknown(flag, call):
    line = said(call, main_moco.build_parser(), "D", flag)
    assert line.endswith(f"unknown flag {flag.partition('=')[0]}; --help lists all flags\n")


@pytest.mark.parametrize("value", ["-1", "-1e-5", "-.5", "-inf", "-nan"])
def test_a_negative_number_is_a_value_and_no_flag(value, call):
    assert f"--moco-t: {value!r} is not a finite number > 0" in said(
        call, main_moco.build_parser(), "D", "--moco-t", value
    )


def test_known_flags_pass():
    args = main_moco.build_parser().parse_args(["-b8", "--lr=2", "-p", "1", "--", "--folder"])
    assert (args.batch_size, args.lr, args.print_freq, args.data) == (8, 2, 1, "--folder")


@pytest.mark.parametrize(
    "words, rest",
    [
        (["-a", "resnet5O"], "-a/--arch: invalid choice: 'resnet5O'; did you mean resnet50? --help lists all "),
        (["-a", "vit"], "-a/--arch: invalid choice: 'vit'; --help lists all "),
        (["--precision", "BF"], "--precision: invalid choice: 'BF'; did you mean bf16? give one of fp32, tf32, bf16,"),
        (["--on-bad-image", "x"], "--on-bad-image: invalid choice: 'x'; give one of stop, skip\n"),
        (["-b"], "-b/--batch-size: expected one argument\n"),
        (["E"], "'E' is one argument too many; repeat a flag to give it several values; --help lists all\n"),
    ],
)
def test_a_wrong_or_missing_value(words, rest, call):
    line = said(call, main_moco.build_parser(), "D", *words)
    assert rest in line and len(line) < 200


@pytest.mark.parametrize("words", [[], ["--lr", "1"]])
@pytest.mark.parametrize("script", [main_moco, main_lincls])
def test_without_a_folder_a_script_says_what_it_is_and_shows_an_example(script, words, call):
    parser = script.build_parser()
    line = said(call, parser, *words)
    words = "DIR is missing; give the folder with train/ and val/, or train.tar and val.tar, each with one folder"
    assert words in line
    example = line.rstrip().partition(f"for example: python {parser.prog} ")[2].split()
    assert parser.parse_args(example).data == "/path/to/imagenet"


def test_so_does_a_tool_also_about_a_flag(call):
    code, _, error = call(loader.main)
    assert code == 2 and error.endswith("for example: python -m moco.benchmarks.loader /path/to/imagenet\n")
    parser = Parser(module="a.b", example="--out x")
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write")
    assert said(call, parser).endswith(
        "--out is missing; give the file to write; for example: python -m a.b --out x\n"
    )
    parser = Parser(module="a.b", example="x y")
    for name in ("FIRST", "SECOND"):
        parser.add_argument(name.lower(), metavar=name, help=f"{name} file")
    assert "SECOND is missing; give the SECOND file; for" in said(call, parser, "x")


def test_of_several_arguments_the_first_one_that_is_missing_is_named(call):
    parser = Parser()
    parser.add_argument("checkpoint", metavar="FILE", help="checkpoint")
    parser.add_argument("dir", help="folder of images")
    parser.add_argument("-o", "--out", required=True, help="file to write")
    for words, said_of in (([], "FILE"), (["-o", "x"], "FILE"), (["x"], "dir"), (["x", "y"], "-o/--out")):
        assert f"error: {said_of} is missing; give the " in said(call, parser, *words)


def test_an_error_is_said_once_a_node(monkeypatch, capsys):
    for local_rank, lines in (("0", 1), ("1", 0), ("10", 0), ("", 1), ("x", 1)):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        with pytest.raises(SystemExit):
            Parser(module="p").error("two\nlines")
        assert capsys.readouterr().err == "python -m p: error: two lines\n" * lines


def test_the_help_keeps_the_lines_of_the_description_and_shows_defaults():
    parser = Parser("one\n\n    two", module="p")
    parser.add_argument("--n", default=3, help="a number")
    parser.add_argument("--text", default="", help="a text")
    text = parser.format_help()
    assert "one\n\n    two\n" in text and "a number (default: 3)\n" in text and "a text\n" in text


def test_the_nearest_choice():
    assert nearest("RESNET18x", ["resnet18", "resnet34", "Other"]) == "resnet18"
    assert nearest("other", ["resnet18", "Other"]) == "Other"
    assert nearest("zz", ["resnet18"]) is None


@pytest.mark.parametrize("kind, text", [(int, "3"), (float, "0.5"), (float, "1e-3"), (int, "0"), (float, "1")])
def test_numbers_that_pass(kind, text):
    assert number(kind, 0, 3)(text) == kind(text)


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "3.5", "1e400", "9" * 400, "", "x", "1.5.2"])
def test_numbers_that_do_not(text):
    with pytest.raises(Exception, match="is not an integer >= 0 and <= 3"):
        number(int, 0, 3)(text)
    if text != "3.5":
        with pytest.raises(Exception, match="is not a finite number > 0"):
            number(float, 0, exclusive=True)(text)
    with pytest.raises(Exception, match="> 0"):
        number(float, 0, exclusive=True)("0")


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A working folder with a folder, a file, and both read-only."""
    monkeypatch.chdir(tmp_path)
    for name in ("folder", "fixed"):
        os.mkdir(name)
    for name in ("file.png", "fixed.png"):
        open(name, "w").close()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "fixed" not in os.fspath(path) and access(path, mode))


@pytest.mark.parametrize(
    "converter, text, message",
    [
        (writable_folder, "folder", None),
        (writable_folder, "nowhere", "'nowhere' is no folder; give one that exists"),
        (writable_folder, "file.png", "'file.png' is no folder"),
        (writable_folder, "", "'' is no folder"),
        (writable_folder, "fixed", "'fixed' can't be written, since 'fixed' is not writable; give another"),
        (output_folder, "folder", None),
        (output_folder, "folder/new/newer", None),
        (output_folder, "file.png", "'file.png' is no folder; give a folder, which may be a new one"),
        (output_folder, "file.png/x", "'file.png/x' can't be made: Not a directory; give another"),
        (output_folder, "n" * 300, "can't be made: File name too long"),
        (output_folder, "", "'' is no folder"),
        (output_folder, "fixed/new", "'fixed/new' can't be written, since '.*fixed' is not writable"),
        (output_file(".png"), "new.png", None),
        (output_file(".png"), "file.png", None),
        (output_file(".jpg", ".png"), "folder/new.PNG", None),
        (
            output_file(".jpg", ".png"),
            "new.gif",
            "'new.gif' is no file to write; give a name that ends in .jpg or ",
        ),
        (output_file(".png"), "", "'' is no file to write"),
        (output_file("er"), "folder", "'folder' is no file to write"),
        (output_file(".png"), "no/new.png", "'no/new.png' can't be written: 'no' is no folder; make it first"),
        (output_file(".png"), "file.png/x.png", "'file.png' is no folder"),
        (output_file(".png"), "fixed.png", "'fixed.png' is not writable"),
        (output_file(".png"), "fixed/x.png", "'fixed' is not writable"),
    ],
)
def test_folders_and_files(converter, text, message, places):
    if message is None:
        assert converter(text) == text and not os.path.exists("folder/new")
    else:
        with pytest.raises(Exception, match=message):
            converter(text)
