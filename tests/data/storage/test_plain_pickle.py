"""Pickles of plain data give what pickle gives; every other one is refused by name, and nothing of it is executed."""

import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest

from densewalk.core.errors import UserError
from densewalk.data.storage import plain_pickle
from densewalk.data.storage.plain_pickle import Array, read_plain_pickle

SHARED_LIST = [1, 2, 3]
DATA = {
    "names": ["all_souls_000013", "straße", "", "x" * 300],
    "numbers": [0, -1, 255, 65_536, 2**40, -(2**70), 1.5, -0.0, True, False, None],
    "nested": [[], {}, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [[["deep"]]]],
    "bytes": [b"", b"\x00\xff", b"y" * 300],
    "twice": [SHARED_LIST, SHARED_LIST],
    7: "number as key",
}


def written(tmp_path, content):
    path = tmp_path / "gnd.pkl"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_equal_those_of_pickle(tmp_path, protocol):
    found = read_plain_pickle(written(tmp_path, pickle.dumps(DATA, protocol)))
    assert found == DATA
    assert [type(x) for x in found["numbers"]] == [type(x) for x in DATA["numbers"]]
    assert found["twice"][0] is found["twice"][1]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["int64", "<i4", ">i8", "uint8", "float32", ">f8", "bool"])
def test_arrays_of_numbers_equal_those_of_pickle(tmp_path, protocol, dtype):
    arrays = [np.array([[3, 0, 1], [2, 5, 1]], dtype=dtype), np.asfortranarray(np.array([[3, 0], [2, 5]], dtype=dtype)), np.zeros(0, dtype)]
    found = read_plain_pickle(written(tmp_path, pickle.dumps([*arrays, arrays[0][1, 1]], protocol)))
    for own, array in zip(found[:-1], arrays, strict=True):
        assert isinstance(own, Array)
        np.testing.assert_array_equal(own.values, array)
    assert found[-1] == arrays[0][1, 1]


def test_a_pickle_of_python_2(tmp_path):
    """Text is bytes there, and so are an array's numbers."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I2\ntcnumpy\ndtype\n(S'i4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x05\\x00\\x00\\x00\\x07\\x00\\x00\\x00'\ntb"
    )
    found = read_plain_pickle(written(tmp_path, b"(dS'easy'\n" + array + b"s."))
    assert found["easy"].values.tolist() == [5, 7]


class Hostile:
    """Unpickled, it calls a function."""

    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_pickle_does_nothing_and_is_named(tmp_path, protocol):
    mark = tmp_path / "executed"
    for function, arguments, said in (
        (os.system, (f"touch {mark}",), r"posix\.system"),
        (subprocess.Popen, (["touch", str(mark)],), r"(subprocess|commands)\.Popen"),
        (eval, (f"open({str(mark)!r}, 'w')",), r"(__builtin__|builtins)\.eval"),
        (Path, ("x",), "pathlib"),
        (np.load, (str(mark),), "numpy"),
    ):
        content = pickle.dumps({"imlist": ["a"], "gnd": Hostile(function, *arguments)}, protocol)
        with pytest.raises(UserError, match=rf"gnd\.pkl names .*{said}.*no plain data.*nothing of it was executed"):
            read_plain_pickle(written(tmp_path, content))
        assert not mark.exists()
    path = written(tmp_path, pickle.dumps(Hostile(os.system, f"touch {mark}"), protocol))
    with open(path, "rb") as file:
        pickle.load(file)
    assert mark.exists(), "the same file does execute where it is unpickled"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "damaged"),
        (b"no pickle", "damaged"),
        (pickle.dumps(DATA)[:-20], "damaged"),
        (b"]" * 3 + b".", "more or less than one thing"),
        (b"(].", "more or less than one thing"),
        (b"N]s.", "damaged"),
        (b"Na.", "damaged"),
        (b"NNa.", "appends to what is no list"),
        (b"NNNs.", "sets items of what is no dict"),
        (b"}]Ns.", "keys are not text"),
        (b"NNb.", "sets the state of what is no array"),
        (b"NNR.", "calls something that is no function"),
        (b"h\x05.", "damaged"),
        (b"(NNio\nx\n.", "instruction INST"),
        (b"P1\n.", "instruction PERSID"),
        (b"\x82\x01.", "instruction EXT1"),
        (b"cnumpy\nfromfile\n.", r"names numpy\.fromfile"),
        (b"\x8c\x05numpy\x8c\x0dndarray.dtype\x93.", r"names numpy\.ndarray\.dtype"),
        (b"cnumpy\ndtype\n(S'O8'\ntR.", "type 'O8', not of numbers"),
        (b"cnumpy\ndtype\n(S'i4'\ntRN.", "more or less than one thing"),
        (b"c_codecs\nencode\n(Vx\nS'rot13'\ntR.", "calls encode with other arguments"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntS'b'\ntR.", "calls _reconstruct with other arguments"),
    ],
)
def test_what_is_damaged_or_no_plain_data(tmp_path, content, said):
    with pytest.raises(UserError, match=rf"gnd\.pkl .*({said})"):
        read_plain_pickle(written(tmp_path, content))


OTHERS = [np.array(["a", None], dtype=object), np.array(["name"]), np.zeros(2, [("a", "i4")]), np.zeros(1, "M8[s]")]


@pytest.mark.parametrize("array", OTHERS)
def test_arrays_of_other_things_are_refused(tmp_path, array):
    with pytest.raises(UserError, match="holds an array of"):
        read_plain_pickle(written(tmp_path, pickle.dumps({"easy": array}, 4)))


def test_an_array_whose_shape_is_not_that_of_its_bytes(tmp_path):
    content = pickle.dumps(np.arange(6, dtype=np.int64), 2).replace(b"K\x06\x85", b"K\x07\x85")
    with pytest.raises(UserError, match=r"shape \(7,\) in 48 bytes"):
        read_plain_pickle(written(tmp_path, content))


def test_a_file_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_pickle, "LARGEST", 100)
    with pytest.raises(UserError, match="is larger than"):
        read_plain_pickle(written(tmp_path, pickle.dumps(DATA)))
