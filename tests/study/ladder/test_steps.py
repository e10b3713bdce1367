"""Steps between two evaluations: what differs, what cannot be turned alone, and the order in which combinations are scored."""

from itertools import pairwise
from typing import ClassVar, Self

import pytest
from pydantic import model_validator

from densewalk.core.errors import UserError
from densewalk.evaluations.common.settings import EvaluationSettings
from densewalk.evaluations.davis.settings import DavisSettings
from densewalk.evaluations.incontext.settings import IncontextSettings
from densewalk.evaluations.segmentation.settings import SETTINGS as SEGMENTATION
from densewalk.study.ladder.steps import gray_code, make_ladder

VIDEO = {"root": "data", "dataset": "toy", "layout": "video", "images": "walk.mp4", "masks": "walk_masks", "num_classes": 22}


def incontext(**changes):
    return IncontextSettings(**{**VIDEO, **changes})


def names(ladder):
    return [step.names for step in ladder.steps]


def test_a_switch_counts_by_its_value_and_what_decides_it_not_at_all():
    ladder = make_ladder("paper", incontext(), "released", incontext(compat="released"))
    assert names(ladder) == [("blue_std",), ("remember_ignored",), ("count_absent_classes",)]
    assert ladder.values(ladder.steps[0]) == ("0.225", "0.255")
    middle = ladder.settings(0b001)
    assert (middle.blue_std, middle.remember_ignored, middle.count_absent_classes) == (0.255, False, False)
    assert ladder.settings(0) == incontext()
    assert ladder.settings(0b111) == incontext(compat="released")


def test_settings_that_change_features_come_first_and_change_least_often():
    ladder = make_ladder("a", incontext(temperature=0.1), "b", incontext(input_size=256, neighbours=5))
    assert names(ladder) == [("input_size",), ("neighbours",), ("temperature",)]
    sizes = [ladder.settings(subset).input_size for subset in ladder.order]
    assert sizes == [512] * 4 + [256] * 4
    assert len({ladder.features_of(subset) for subset in ladder.order}) == 2


def test_gray_codes_visit_every_subset_and_change_one_step_at_a_time():
    codes = [gray_code(number, 4) for number in range(16)]
    assert sorted(codes) == list(range(16))
    assert codes[0] == 0
    assert all((one ^ other).bit_count() == 1 for one, other in pairwise(codes))
    assert [code & 1 for code in codes] == [0] * 8 + [1] * 8


class Rules(EvaluationSettings):
    """Settings with rules that forbid combinations."""

    VERSION: ClassVar[int] = 1
    a: int = 0
    b: int = 0
    c: int = 0
    d: int = 0

    @model_validator(mode="after")
    def b_and_c_belong_together(self) -> Self:
        """As a size and a stride may."""
        if self.b != self.c:
            raise ValueError("b and c belong together")
        return self


def test_settings_that_cannot_be_turned_alone_are_joined_and_the_reason_is_kept():
    plain = {"root": "r", "dataset": "d"}
    ladder = make_ladder("x", Rules(**plain), "y", Rules(**plain, a=1, b=1, c=1, d=1))
    assert names(ladder) == [("a",), ("b", "c"), ("d",)]
    assert [step.reason for step in ladder.steps] == ["", "b and c belong together", ""]
    assert len([ladder.settings(subset) for subset in ladder.order]) == 8


def test_an_offset_and_a_step_that_would_mix_memory_and_queries_are_one_step():
    ladder = make_ladder("x", incontext(), "y", incontext(memory_every=8, query_offset=4, neighbours=3))
    assert {frozenset(n) for n in names(ladder)} == {frozenset({"memory_every", "query_offset"}), frozenset({"neighbours"})}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (incontext(), "have the same settings"),
        (incontext(dataset="other"), "of other data: dataset 'toy' and 'other'"),
        (incontext(num_classes=5), "of other data: num_classes 22 and 5"),
        (DavisSettings(root="data", dataset="toy"), "different kinds of settings: In-context segmentation and Video object segmentation"),
    ],
)
def test_what_is_no_ladder_is_refused(other, message):
    with pytest.raises(UserError, match=message):
        make_ladder("one", incontext(), "two", other)


def test_presets_differ_by_what_they_set():
    kind = SEGMENTATION["ade20k_linear"]
    ladder = make_ladder("a", kind(root="r", dataset="ADE20K"), "b", kind(root="r", dataset="ADE20K", preset="ibot"))
    turned = {name for step in ladder.steps for name in step.names}
    assert "preset" not in turned
    assert {"learning_rate", "iterations"} <= turned
    assert ladder.settings(ladder.whole).preset == "ibot"
