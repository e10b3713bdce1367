"""The page of the Python API: every public name and parameter; examples run, but for the names of a checkpoint and a folder."""

import dataclasses
import importlib.util
import inspect

import pytest

import densewalk as dw
from densewalk.core.errors import UserError
from densewalk.models.export import export_backbone
from densewalk.models.interface import Network
from tests.evaluations.test_davis import write_sequence
from tests.fixtures.studies import REPOSITORY


def read_hook():
    spec = importlib.util.spec_from_file_location("api_page", REPOSITORY / "docs/site/api_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOK = read_hook()
THINGS = {name: thing for name, thing in HOOK.things().items() if not isinstance(thing, str)}
FUNCTIONS = [name for name, thing in THINGS.items() if inspect.isfunction(thing)]
EXAMPLES = {name: HOOK.sections(thing.__doc__).get("Example") for name, thing in THINGS.items() if thing is not Network}


def described(thing):
    """Title of each section of a docstring -> name -> meaning."""
    parts = HOOK.sections(thing.__doc__)
    return {title: HOOK.entries(parts[title]) for title in ("Args", "Attributes", "Raises") if title in parts}


def test_every_public_name_has_a_description():
    page = HOOK.page()
    parts = {part.split("\n")[0].replace("\\", ""): part for part in page.split("\n## ")[1:]}
    assert [*parts] == list(dict.fromkeys(HOOK.ORDER))
    assert set(parts) == {*dw.__all__, "Network", "UserError"}
    for name, thing in THINGS.items():
        text = HOOK.sections(thing.__doc__)[""]
        assert len(text.split()) > 5
        assert text in parts[name]


def test_a_new_public_name_gets_a_part(monkeypatch):
    def other():
        """Do nothing that a page would show."""

    monkeypatch.setattr(dw, "other", other, raising=False)
    monkeypatch.setattr(dw, "__all__", [*dw.__all__, "other"])
    assert "## other\n\n```python\ndw.other()\n```\n\nDo nothing that a page would show." in HOOK.page()


@pytest.mark.parametrize("function", [*(THINGS[name] for name in FUNCTIONS), *(getattr(Network, name) for name in HOOK.METHODS)])
def test_every_parameter_has_a_meaning_and_no_other(function):
    parameters = inspect.signature(function).parameters.keys() - {"self"}
    meanings = described(function).get("Args", {})
    assert meanings.keys() == parameters
    assert all(len(meaning.split()) > 1 for meaning in meanings.values())
    assert all(f"| **`{name}`**<br>" in HOOK.page() or f"| **`**{name}`**<br>" in HOOK.page() for name in parameters)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_what_comes_back_and_what_is_raised(name):
    parts = HOOK.sections(THINGS[name].__doc__)
    assert parts["Returns"]
    assert "UserError" in described(THINGS[name]).get("Raises", {}) or name == "protocols"


def test_attributes_are_those_of_the_objects():
    assert described(dw.Evaluation)["Attributes"].keys() == {field.name for field in dataclasses.fields(dw.Evaluation)}
    for thing in (dw.create("vit_nano_patch16"), UserError("found", todo="do")):
        names = described(Network if isinstance(thing, Network) else UserError)["Attributes"]
        assert all(hasattr(thing, name) for name in names)


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_sequence(tmp_path / "data/DAVIS", "boat")
    export_backbone(dw.create("vit_nano_patch16"), "backbone.safetensors", run="r", config_hash="0")
    assert EXAMPLES[name], f"{name} has no example"
    names = {"dw": dw}
    exec(EXAMPLES[name].replace('"dinov2_vits14"', '"backbone.safetensors"'), names)
    if "result" in names:
        assert 0 <= names["result"].metrics["J&F"] <= 100


def test_an_unknown_name_is_the_error_that_the_example_shows(capsys):
    exec(EXAMPLES["UserError"], {"dw": dw})
    assert "no file and no public checkpoint is called 'dinov2_vits15'" in capsys.readouterr().out


def test_what_is_written_in_a_cell_stays_in_it():
    assert HOOK.cell("a | b -> `c -> d | e` <b>") == "a \\| b -&gt; `c -> d | e` &lt;b&gt;"
