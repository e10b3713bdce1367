"""Docstrings of attributes: those of the nearest class that has one, found in the source."""

from pydantic import create_model

from densewalk.core.settings import Settings
from densewalk.core.text.docstrings import attribute_docstrings


class Parent(Settings):
    """A settings model."""

    first: int = 1
    """The first,
    on two lines."""
    second: int = 2
    """The second."""
    third: int = 3


class Child(Parent):
    """One that says it otherwise."""

    second: int = 5
    third: int = 6
    """The third."""
    "no docstring of an attribute"


def of_fields(model):
    return {name: text for name, text in attribute_docstrings(model).items() if name in model.model_fields}


def test_the_nearest_docstring_counts():
    assert of_fields(Parent) == {"first": "The first,\non two lines.", "second": "The second."}
    assert of_fields(Child) == {"first": "The first,\non two lines.", "second": "The second.", "third": "The third."}
    assert attribute_docstrings(Child)["NOT_REPRODUCED"].startswith("For docs/deviations.md"), "of all attributes"


def test_classes_in_functions_are_found_and_made_ones_have_their_bases():
    class Local(Parent):
        fourth: int = 4
        """The fourth."""

    assert attribute_docstrings(Local)["fourth"] == "The fourth."
    assert attribute_docstrings(create_model("Made", __base__=Child, first=(int, 0))) == attribute_docstrings(Child)
    assert attribute_docstrings(int) == {}


def test_the_schema_has_them_and_the_models_are_made_without():
    properties = Child.model_json_schema()["properties"]
    assert {name: field["description"] for name, field in properties.items()} == of_fields(Child)
    assert all(field.description is None for field in Child.model_fields.values())
