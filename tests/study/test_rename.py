"""Files that a rename moves."""

from densewalk.study.upkeep.rename import _evaluation_moves


def test_unit_statistics_move_with_their_record(tmp_path):
    folder = tmp_path / "walk" / "s0"
    folder.mkdir(parents=True)
    moves = dict(_evaluation_moves(tmp_path, "davis", "davis_480"))
    for end in (".json", ".units.npz", ""):
        assert moves[folder / f"davis{end}"] == folder / f"davis_480{end}"
