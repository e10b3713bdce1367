"""Messages name keys as a file has them; a study's are read in tests/study/test_messages.py."""

from typing import Annotated, Literal

import pydantic
import pytest
from pydantic import Field, ValidationError

from densewalk.core.errors import UserError
from densewalk.core.settings import Settings
from densewalk.core.text.complaints import complaints, did_you_mean
from densewalk.study.config import parse_study


class Inner(Settings):
    lr: float = 1.0
    batch_size: int = 1
    """Images of a step. More is said here."""


class Cat(Settings):
    kind: Literal["cat"]
    settings: Inner
    seeds: list[int] = []


class Dog(Settings):
    kind: Literal["dog"]
    settings: Inner | None = None
    parts: int | dict[str, int] = 1


class House(Settings):
    animals: dict[str, Annotated[Cat | Dog, Field(discriminator="kind")]] = {}
    name: str
    """Of the house: any text. Or none."""


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"cat": 3}, ["name: Field required (Of the house)", "cat: there is no key 'cat' here; allowed: animals, name"]),
        ({"name": "a", "nam": 1}, ["nam: there is no key 'nam' here, did you mean name?; allowed: animals, name"]),
        ({"name": "a", "animals": {"x": {"kind": "cow"}}}, ["animals.x.kind: no such kind: 'cow'; allowed: cat, dog"]),
        ({"name": "a", "animals": {"x": {"knd": "cow"}}}, ["animals.x.kind: Field required; allowed: cat, dog"]),
        ({"name": "a", "animals": {"x": {"kind": "cat"}}}, ["animals.x.settings: Field required"]),
        ({"name": "a", "animals": [3]}, ["animals: keys with values, such as {a: 1, b: 2}, are needed (found [3])"]),
        (
            {"name": "a", "animals": {"cat": {"kind": "cat", "settings": {"lr": "x", "batchsize": 2}}}},
            [
                "animals.cat.settings.lr: Input should be a valid number, unable to parse string as a number (found 'x')",
                "animals.cat.settings.batchsize: there is no key 'batchsize' here, did you mean batch_size?; allowed: lr, batch_size",
            ],
        ),
        (
            {"name": "a", "animals": {"x": {"kind": "dog", "settings": {"learning_rate": 2}}}},
            ["animals.x.settings.learning_rate: there is no key 'learning_rate' here, did you mean lr?; allowed: lr, batch_size"],
        ),
        (
            {"name": "a", "animals": {"x": {"kind": "cat", "settings": {"seeds": [2]}, "lr": 3}}},
            [
                "animals.x.settings.seeds: there is no key 'seeds' here, did you mean animals.x.seeds?; allowed: lr, batch_size",
                "animals.x.lr: there is no key 'lr' here, did you mean settings.lr?; allowed: kind, settings, seeds",
            ],
        ),
        (
            {"name": "a", "animals": {"x": {"kind": "dog", "seeds": [2]}}},
            ["animals.x.seeds: there is no key 'seeds' here (it has kind: dog)"],
        ),
        ({"name": "a", "animals": {"x": {"kind": "dog", "parts": {"a": "b"}}}}, ["animals.x.parts: ", "animals.x.parts.a: "]),
        (
            {"name": "a", "animals": {"x": {"kind": "cat", "settings": {}, "seeds": 3}}},
            ["animals.x.seeds: Input should be a valid list: write [3] (found 3)"],
        ),
    ],
)
def test_keys_are_those_of_the_file(content, expected):
    with pytest.raises(ValidationError) as error:
        House.model_validate(content)
    lines = complaints(error.value, House)
    assert len(lines) == len(expected)
    for line, begin in zip(lines, expected, strict=True):
        assert line.startswith(begin), line


def test_five_are_listed_and_the_others_counted():
    with pytest.raises(ValidationError) as error:
        House.model_validate({"name": "a", **{f"key{i}": 1 for i in range(7)}})
    lines = complaints(error.value, House)
    assert len(lines) == 6
    assert lines[-1] == "and 2 more"


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("DAVIS", ["coco", "davis"], ", did you mean davis?"),
        ("wd", ["weight_decay", "lr"], ", did you mean weight_decay?"),
        ("xyz", ["weight_decay", "lr"], ""),
        ("vit_tny", ["vit_tiny", "vit_tidy", "base"], ", did you mean vit_tiny?"),
    ],
)
def test_the_nearest_name_is_suggested(name, known, hint):
    assert did_you_mean(name, known) == hint


class Chooser(pydantic.BaseModel):
    """A required choice."""

    layout: Literal["ade20k", "voc"]
    """`ade20k`: of MIT; `voc`: of Oxford."""


def test_a_missing_choice_lists_what_may_be_chosen():
    with pytest.raises(ValidationError) as error:
        Chooser.model_validate({})
    assert complaints(error.value, Chooser) == ["layout: Field required; allowed: ade20k, voc"]


def test_a_size_alone_is_told_the_name_of_an_architecture_and_a_long_message_is_said_once():
    run = {"method": "none", "init": "random", "arch": "nano"}
    with pytest.raises(UserError) as error:
        parse_study({"study": "A", "runs": {"a": run, "b": run}, "evaluations": {}})
    assert str(error.value).startswith(
        "config.yaml: runs.a.arch, runs.b.arch: unknown architecture 'nano', did you mean vit_nano_patch16?;"
    )
    assert str(error.value).count("unknown architecture") == 1


def test_a_description_is_not_cut_at_an_abbreviation():
    class Row(Settings):
        arch: str
        """Column `arch`, e.g. ViT-S/16. More of it."""

    with pytest.raises(ValidationError) as error:
        Row()
    assert complaints(error.value, Row) == ["arch: Field required (Column `arch`, e.g. ViT-S/16)"]
