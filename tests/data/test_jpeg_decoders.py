"""The choice of the JPEG decoder: the fastest that can be imported and has Pillow's pixels; why not, in words."""

import importlib
import types
import warnings

import pytest
import torch

from moco.data import jpeg_decoders
from moco.data.jpeg_decoders import PILLOW, best
from tests.data import jpegs


def decode_by_pillow(encoded, mode, shift=0):
    """A function like those of the libraries."""
    pixels = torch.from_numpy(jpegs.pillow(encoded.numpy().tobytes()) + shift)
    return pixels.permute(2, 0, 1)


@pytest.fixture
def libraries(monkeypatch):
    """A function that sets what the import of each library gives or raises, and calls `best`."""

    def choose(**found):
        def import_module(name):
            module = found[name.partition(".")[0]]
            if isinstance(module, BaseException):
                raise module
            return module

        monkeypatch.setattr(jpeg_decoders, "import_module", import_module)
        decoder, why = best()
        return decoder.name, why

    return choose


def library(version, **functions):
    """A module that has only these names."""
    return types.SimpleNamespace(__version__=version, **functions)


def test_the_first_library_that_works_is_taken(libraries):
    works = library("9.8", decode_jpeg=decode_by_pillow)
    gone = ModuleNotFoundError("No module named 'torchcodec'")
    assert libraries(torchcodec=works, torchvision=works) == ("torchcodec 9.8", "")
    assert libraries(torchcodec=gone, torchvision=works) == ("torchvision 9.8", "; torchcodec is not installed")
    why = "; torchcodec is not installed; torchvision is not installed"
    assert libraries(torchcodec=gone, torchvision=gone) == (PILLOW.name, why)


def test_whatever_the_import_raises_leads_to_the_next_library_and_is_told(libraries):
    works = library("9.8", decode_jpeg=decode_by_pillow)
    for kind in (ImportError, OSError, RuntimeError, AttributeError):
        name, why = libraries(torchcodec=kind("undefined symbol\nand much more"), torchvision=works)
        assert name == "torchvision 9.8"
        assert why == f"; torchcodec can't be used ({kind.__name__}: undefined symbol)"
    hidden = OSError("Could not load this library: x.so")
    hidden.__cause__ = OSError("libtorch_cuda.so: cannot open shared object file")
    _, why = libraries(torchcodec=hidden, torchvision=works)
    assert why == "; torchcodec can't be used (OSError: libtorch_cuda.so: cannot open shared object file)"


def test_a_library_that_is_too_old_or_has_other_pixels_is_not_taken(libraries):
    works = library("9.8", decode_jpeg=decode_by_pillow)
    name, why = libraries(torchcodec=library("0.15"), torchvision=works)
    assert name == "torchvision 9.8"
    assert why == "; torchcodec can't be used (ImportError: version 0.15 has no decode_jpeg)"
    differs = "; torchcodec can't be used (ValueError: its pixels differ from Pillow's)"
    for decode in (
        lambda encoded, mode: decode_by_pillow(encoded, mode, shift=1),
        lambda encoded, mode: decode_by_pillow(encoded, mode).rot90(-1, (1, 2)),  # applies the orientation
    ):
        assert libraries(torchcodec=library("1", decode_jpeg=decode), torchvision=works) == (
            "torchvision 9.8",
            differs,
        )


def test_choosing_prints_nothing(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        best()
    assert capfd.readouterr() == ("", "")


def test_torchcodec_is_taken_where_it_can_be_imported():
    try:
        torchcodec = importlib.import_module("torchcodec")
    except Exception as error:
        pytest.skip(f"torchcodec can't be imported: {error}")
    decoder, why = best()
    assert decoder.name == f"torchcodec {torchcodec.__version__}" and not why
