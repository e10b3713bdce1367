"""The file of votes: read as written, and checked."""

import json

import numpy as np
import pytest

from densewalk.core.errors import UserError
from densewalk.visualization.votes import MemoryImage, Query, Votes, from_text, read_votes, to_text, write_votes


def votes(**changes):
    query = {
        "name": "q.png",
        "image": "",
        "predicted": to_text(np.array([0, 1])),
        "share": to_text(np.array([65535, 100])),
        "truth": to_text(np.array([1, 65535])),
        "voters": to_text(np.array([[[0, 1, 1, 9]], [[1, 0, 0, 7]]])),
        "mixture": to_text(np.array([[[0, 9, 9]], [[1, 9, 9]]])),
    }
    memory = [MemoryImage(name="a.png", image=""), MemoryImage(name="b.png", image=None)]
    return Votes(rows=1, columns=2, voters=1, classes=1, labels=["sky", "road"], memory=memory, queries=[Query(**{**query, **changes})])


def test_a_file_is_read_as_it_was_written(tmp_path):
    write_votes(tmp_path / "votes.json", votes())
    found = read_votes(tmp_path / "votes.json")
    assert found == votes()
    assert from_text(found.queries[0].voters, "voters").reshape(2, 1, 4)[1, 0].tolist() == [1, 0, 0, 7]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"truth": "!"}, "truth of q.png is no base64"),
        ({"mixture": "AAA="}, "mixture of q.png has 1 numbers; allowed: 6"),
        ({"mixture": to_text(np.array([[[0, 9, 9]], [[2, 9, 9]]]))}, "mixture of q.png has label 2 of 2"),
        ({"share": "AAA="}, "share of q.png has 1 numbers; allowed: 2"),
        ({"voters": to_text(np.array([[[0, 1, 1, 9]], [[2, 0, 0, 7]]]))}, "vote of memory image 2 of 2"),
        ({"voters": to_text(np.array([[[0, 2, 1, 9]], [[1, 0, 0, 7]]]))}, "vote of patch 2 of 2"),
        ({"voters": to_text(np.array([[[0, 1, 2, 9]], [[1, 0, 0, 7]]]))}, "vote of label 2 of 2"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, changes, message):
    path = tmp_path / "votes.json"
    write_votes(path, votes(**changes))
    with pytest.raises(UserError, match=message) as error:
        read_votes(path)
    assert str(path) in str(error.value)


def test_another_version_is_refused(tmp_path):
    path = tmp_path / "votes.json"
    write_votes(path, votes())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
    with pytest.raises(UserError, match="version"):
        read_votes(path)
