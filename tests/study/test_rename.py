"""Files that a rename moves."""

from densewalk.study.config import parse_study
from densewalk.study.upkeep.rename import _evaluation_moves, rename
from tests.fixtures.studies import TINY


def test_unit_statistics_move_with_their_record(tmp_path):
    folder = tmp_path / "walk" / "s0"
    folder.mkdir(parents=True)
    moves = dict(_evaluation_moves(tmp_path, "davis", "davis_480"))
    for end in (".json", ".units.npz", ""):
        assert moves[folder / f"davis{end}"] == folder / f"davis_480{end}"


def test_a_data_set_s_name_is_in_the_tables_alone(tmp_path):
    (said,) = rename(parse_study(TINY), "walk of before", "synthetic walk", tmp_path)
    assert said.startswith("synthetic walk is a data set's name in the tables: nothing is to be moved")
