"""Every name that README.md and docs/*.md set in code type exists: paths, options, keys, modules, functions and tests.

A word is looked for wherever names of its kind are defined. What is defined elsewhere (other programs, data sets, placeholders) is in
ELSEWHERE, so that a misspelled or outdated name of ours fails.
"""

import ast
import copy
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from snakemake.cli import get_argument_parser

from densewalk.cli.parser import parser
from densewalk.data.download.catalog import datasets
from densewalk.models.catalog import published
from densewalk.results.tables import COST, SUFFIXES, TIDY
from densewalk.study.config import json_schema, load_study, parse_study
from densewalk.study.registry import evaluations, methods
from densewalk.training.execution import Execution
from tests.fixtures.documents import PAGES, Block, blocks, code_words, is_command, name_of, without_fences
from tests.fixtures.studies import REPOSITORY

SOURCE = REPOSITORY / "src/densewalk"
MADE = ("results/", "demo/results/", "demo/data/", "report/", "studies/dora/")  # by a study
GIVEN = ("data/", "checkpoints/", "my-study/", "study/", "shared/")  # by its user

# names that are not ours, by where they come from
ELSEWHERE = {
    *(
        "decord",
        "decord2",
        "mmcv-lite",
        "mmengine",
        "onedl-mmengine",
        "opencv-python",
        "opencv-python-headless",
        "pkg_resources",
        "python3-venv",
        "connection-pool",
        "immutables",
    ),  # packages
    *("python3", "python3.11", "python3.12", "venv", "pstats", "uv", ".uv/", ".uv/log.txt"),  # Python, and what brings it
    *("scancel", "tail -f", "cat", "ffmpeg -i walk.avi -crf 15 walk.mp4", ".venv", "sinfo -o %m"),  # programs and what make install makes
    *("oom_kill", "exceeded memory limit", "MemoryError", "can't allocate memory"),  # words in logs
    *(".h264", ".h265", ".m2v"),  # raw streams
    *("true", "1e-3", "$(...)", "<b>", "=1+1", "X-Amz-Signature"),  # what may stand in a study
    *("norm_mask", "layers", "blocks", "train", "IndexFlatIP", "Range", "If-Range", "nms", "roi_align", "gpus"),  # other code
    *("blackswan", "libby", "schoolgirls"),  # DAVIS
    *(
        "M",
        "M ci95",
        "M published",
        "M published_source",
        "M published_delta",
        "_",
        "_over",
        "CPU s",
        "copied",
    ),  # placeholders, columns of a page
}


def defined_names(file: Path) -> set[str]:
    """Functions, classes, attributes and constants of a module, those of classes with and without the class."""
    names: set[str] = set()

    def visit(body: list[ast.stmt], inside: str) -> None:
        for node in body:
            found: list[str] = []
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found = [node.name]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found = [node.target.id]
            elif isinstance(node, ast.Assign):
                found = [target.id for target in node.targets if isinstance(target, ast.Name)]
            names.update(found, (f"{inside}.{name}" for name in found if inside))
            if isinstance(node, ast.ClassDef):
                visit(node.body, node.name)

    visit(ast.parse(file.read_text()).body, "")
    return names


@lru_cache
def modules() -> dict[str, set[str]]:
    """Dotted name of each module below densewalk -> what it defines."""
    files = [file for file in sorted(SOURCE.rglob("*.py")) if file.name != "__init__.py"]
    return {".".join(file.relative_to(SOURCE).with_suffix("").parts): defined_names(file) for file in files}


@lru_cache
def files_of_tests() -> dict[str, set[str]]:
    """Path of each file of tests below the repository -> its tests."""
    return {name_of(file): defined_names(file) for file in sorted((REPOSITORY / "tests").rglob("test_*.py"))}


@lru_cache
def texts_of_source() -> frozenset[str]:
    """Every whole string in the package and in benchmarks: columns, logged quantities, files that jobs write."""
    files = [*SOURCE.rglob("*.py"), *(REPOSITORY / "benchmarks").rglob("*.py")]
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text())))
    return frozenset(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def schema_words(part: Any) -> Iterator[str]:
    """Keys and allowed texts of the schema of config.yaml."""
    if isinstance(part, dict):
        yield from part.get("properties", {})
        yield from (value for value in [*part.get("enum", []), part.get("const")] if isinstance(value, str))
        yield from (word for child in part.values() for word in schema_words(child))
    elif isinstance(part, list):
        yield from (word for child in part for word in schema_words(child))


def keys_in(part: Any) -> Iterator[str]:
    """All keys of a YAML document."""
    if isinstance(part, dict):
        yield from part
        yield from (key for child in part.values() for key in keys_in(child))
    elif isinstance(part, list):
        yield from (key for child in part for key in keys_in(child))


@lru_cache
def keys_of_config() -> frozenset[str]:
    """What may stand before a colon: keys of config.yaml and of Snakemake's profiles."""
    profile = re.findall(r"^ *(?:# *)?([\w-]+): ", (REPOSITORY / "slurm/profile.yaml").read_text(), flags=re.MULTILINE)
    options = {text.removeprefix("--") for text in options_of_snakemake()}
    return frozenset({*schema_words(json_schema()), *profile, *options, "gpu", "nodes", "gres", "threads"})


@lru_cache
def options_of_snakemake() -> frozenset[str]:
    return frozenset(text for action in get_argument_parser()._actions for text in action.option_strings)


@lru_cache
def names_of_studies() -> frozenset[str]:
    """Names and keys in the repository's own studies."""
    studies = [REPOSITORY / "config.yaml", REPOSITORY / "demo/config.yaml", *REPOSITORY.glob("benchmarks/*/*.yaml")]
    papers = [*REPOSITORY.glob("studies/*.yaml")]
    swept = [*papers, REPOSITORY / "benchmarks/one_video/after_distill.yaml"]
    variants = {run for study in swept for run in load_study(study).runs}
    return frozenset(variants) | {key for study in [*studies, *papers] for key in keys_in(yaml.safe_load(study.read_text()))}


@lru_cache
def known_names() -> frozenset[str]:
    """Every plain name of ours."""
    rules = {
        match for file in (REPOSITORY / "workflow/rules").glob("*.smk") for match in re.findall(r"^\s*rule (\w+):", file.read_text(), re.M)
    }
    commands = parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    rules |= {f"train_{name}" for name in methods()} | {f"evaluate_{name}" for name in evaluations()}
    return frozenset({*keys_of_config(), *texts_of_source(), *names_of_studies(), *rules, *commands, *published(), *datasets(), *ELSEWHERE})


# -- one kind of name each ---------------------------------------------------------------------------------------------


def path_exists(word: str) -> bool:
    """Whether a path lies in the repository, in the package or with the evaluations, or is made by a study under a name of ours."""
    where = [REPOSITORY, SOURCE, SOURCE / "evaluations", REPOSITORY / "docs"]
    if any((folder / word).exists() or ("*" in word and any(folder.glob(word))) for folder in where):
        return True
    name = word.rstrip("/").rsplit("/", 1)[-1]
    return word.startswith(GIVEN) or ((word.startswith(MADE) or "/" not in word) and is_written(name))


def is_written(name: str) -> bool:
    """Whether the package or the workflow writes files of this name; placeholders and the examples' names stand for any text."""
    return all(part in all_source() for part in re.split(r"\{\w+\}|\*|NAME|lisbon_chosen|lisbon|walk", name))


@lru_cache
def all_source() -> str:
    files = [*SOURCE.rglob("*.py"), *(REPOSITORY / "workflow").rglob("*.smk"), REPOSITORY / "Snakefile", REPOSITORY / "results/README.md"]
    return "\n".join(file.read_text() for file in files)


def is_test(word: str, before: list[str]) -> bool:
    """`file::test`, a file of tests, or a test of the file that was named last; of a file the last part of its path is enough."""
    file, _, name = (word, "", "") if word.endswith(".py") else word.rpartition("::")
    if not file:
        file = next((w.partition("::")[0] for w in reversed(before) if re.search(r"test_\w+\.py", w)), "")
    found = [names for path, names in files_of_tests().items() if path == file or path.endswith("/" + file)]
    return len(found) == 1 and (not name or name in found[0])


def attribute_exists(word: str) -> bool:
    """`module.name`, `module.Class.name` or `Class.name`; the module's name may be cut on the left, but must mean one place alone."""
    word = word.removeprefix("densewalk.")
    parts = word.split(".")
    found = set()
    for module, names in modules().items():
        if ".".join(parts) == module or module.endswith("." + word):
            found.add(module)
        for cut in range(1, len(parts)):
            path, name = ".".join(parts[:cut]), ".".join(parts[cut:])
            if name in names and (module == path or module.endswith("." + path)):
                found.add(module)
        if parts[0][0].isupper() and word in names:
            found.add(module)
    return len(found) == 1


def config_path_exists(word: str) -> bool:
    """`execution.workers`, `runs.*.settings`: every part is a key."""
    return all(part == "*" or part in keys_of_config() for part in word.split("."))


def yaml_of(word: str) -> Any:
    """The mapping that a word is, or None."""
    if not re.match(r"\{?\w[\w.-]*:(?:\s|$)", word):
        return None
    value = yaml.safe_load(word)
    return value if isinstance(value, dict) else None


def yaml_exists(value: Any, names: set[str]) -> bool:
    """Whether all keys are keys of config.yaml, or names that the page gives, and all texts are names."""
    if isinstance(value, dict):
        return all(key in keys_of_config() or key in names for key in value) and all(yaml_exists(v, names) for v in value.values())
    if isinstance(value, list):
        return all(yaml_exists(v, names) for v in value)
    return not isinstance(value, str) or value in known_names() | names or "=" in value or "/" in value or value.startswith("gpu:")


def exists(word: str, names: set[str], before: list[str]) -> bool:
    """Whether a word in code type is one of ours, or known to come from elsewhere. `before`: earlier words of the page."""
    if is_command(word) or word in ELSEWHERE or word in names or re.fullmatch(r"\{\w+\}", word):
        return True
    if word.startswith("-"):
        return all(option in options_of_commands() for option in word.split() if option.startswith("-") and option != "-")
    if re.match(r"(?:\w+/)*test_\w+(?:\.py)?", word):
        return is_test(word, before)
    if (mapping := yaml_of(word)) is not None:
        return yaml_exists(mapping, names)
    if word.removeprefix("$") in known_names():
        return True
    if "/" in word or re.fullmatch(r"\.?[\w.{}*-]+\.(?:md|py|ya?ml|txt|lock|csv|jsonl?|html|pth|pt|part|png)|\.\w+", word):
        return path_exists(word)
    call = re.sub(r"\(.*\)$|\[.*\]$", "", word)
    if "." in call:
        return config_path_exists(call) or attribute_exists(call) or call.split(".")[0] in ("torch", "item", "job")
    return (call != word or call.isupper()) and any(call in defined for defined in modules().values())


@lru_cache
def options_of_commands() -> frozenset[str]:
    commands = parser()._subparsers._group_actions[0].choices.values()  # type: ignore[union-attr]
    scripts = {text for file in (REPOSITORY / "benchmarks").rglob("*.py") for text in re.findall(r'"(--[\w-]+)"', file.read_text())}
    ours = {text for command in commands for action in command._actions for text in action.option_strings}
    return ours | scripts | options_of_snakemake()


# -- pages -------------------------------------------------------------------------------------------------------------


def yaml_blocks(*, profile: bool) -> list[Block]:
    """Fragments of a profile of Snakemake, or of config.yaml."""
    found = [block for page in PAGES for block in blocks(page) if block.language == "yaml"]
    return [block for block in found if any(key.startswith("set-") for key in yaml.safe_load(block.text)) == profile]


def names_of_page(page: Path) -> set[str]:
    """Names that a page's own examples give: fragments of config.yaml, variants of runs among them, and code."""
    names: set[str] = {"lisbon", "train_barlow", "evaluate_rankme", "tests/methods/test_barlow.py"}
    for block in blocks(page):
        if block.language == "yaml":
            content = yaml.safe_load(block.text)
            names.update(keys_in(content))
            for run, settings in content.get("runs", {}).items():
                names.update(f"{run}_{variant}" for variant in settings.get("sweep", {}))
        if block.language == "python":
            names.update(node.arg for node in ast.walk(ast.parse(block.text)) if isinstance(node, ast.arg))
    return names


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_word_in_code_type_is_a_name_that_exists(page):
    names, words = names_of_page(page), code_words(page)
    unknown = [word for i, word in enumerate(words) if not exists(word, names, words[:i])]
    assert not unknown, f"{name_of(page)} names what does not exist: {unknown}"


def test_every_column_of_the_tables_is_described():
    words = {word for page in ("tables", "slurm") for word in code_words(REPOSITORY / f"docs/{page}.md")}
    assert {column for column in (*TIDY, *COST) if not {column, column.removeprefix("training_")} & words} == set()
    assert {suffix for suffix in SUFFIXES if f"M{suffix}" not in words} == set()


def test_every_key_of_execution_is_described():
    assert set(Execution.model_fields) <= {word.split(":")[0] for word in code_words(REPOSITORY / "docs/execution.md")}


def test_every_method_and_evaluation_is_described():
    assert set(evaluations()) <= set(code_words(REPOSITORY / "docs/protocols.md"))
    (listed,) = re.findall(r"method: \w+ +# (none .*)", (REPOSITORY / "docs/your_study.md").read_text())
    assert set(listed.split(" | ")) == {"none", *methods()}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file(page):
    text = without_fences(page.read_text())
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("https://")]
    broken = [link for link in links if not (page.parent / link.split("#")[0]).exists()]
    assert not broken, f"{name_of(page)}: {broken}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_target_of_make_exists(page):
    targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
    text = re.sub(r"```python.*?```", "", page.read_text(), flags=re.DOTALL)
    asked = re.findall(r"(?:^    |`|\()make ([a-z][\w-]*)", text, flags=re.MULTILINE)
    assert set(asked) <= set(targets)


@pytest.mark.parametrize("block", yaml_blocks(profile=True), ids=lambda block: block.page)
def test_every_fragment_of_a_profile_names_rules(block):
    rules = {f"train_{name}" for name in methods()} | {f"evaluate_{name}" for name in evaluations()}
    for option, content in yaml.safe_load(block.text).items():
        assert option in ("set-resources", "set-threads")
        assert set(content) <= rules


@pytest.mark.parametrize("block", yaml_blocks(profile=False), ids=lambda block: block.page)
def test_every_fragment_of_a_configuration_is_valid_in_a_study(block):
    study = copy.deepcopy(yaml.safe_load((REPOSITORY / "config.yaml").read_text()))
    fragment = yaml.safe_load(block.text)
    for section, content in fragment.items():
        study[section] = {**study.get(section, {}), **content}
    needed = {name for run in fragment.get("runs", {}).values() for name in run.get("data", [])}
    needed |= {name for curation in fragment.get("curations", {}).values() for name in curation["data"]}
    for name in needed - {*study["videos"], *study["images"], *study.get("curations", {})}:
        study["videos"][name] = {"source": f"data/{name}.mp4"}
    study["runs"].setdefault("dora", study["runs"]["dora_venice"])
    parse_study(study)


def test_names_of_elsewhere_are_used():
    used = {word for page in PAGES for word in code_words(page)}
    assert used >= ELSEWHERE, f"no page says {ELSEWHERE - used}"
