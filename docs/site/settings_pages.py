"""Pages of the settings for the site, from the schema that `densewalk schema` writes (mkdocs calls `on_files`).

settings/study.md         sections of config.yaml that are neither runs nor evaluations
settings/methods.md       a run, and the settings of each method
settings/evaluations.md   an evaluation, and the settings of each protocol
"""

import html
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

SCHEMA = Path(__file__).resolve().parents[2] / "workflow/schemas/config.schema.json"
HEAD = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def cell(text: str) -> str:
    """Text for a cell of a table: one line, and nothing in it ends the cell or begins HTML."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def code(value: Any) -> str:
    """A value as config.yaml would have it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "`" + (text or '""').replace("|", "\\|") + "`"


def allowed(part: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Type and bounds of a value, in words."""
    if "$ref" in part:
        name = part["$ref"].rsplit("/", 1)[-1]
        return allowed(definitions[name], definitions) if "properties" not in definitions[name] else "a mapping"
    if "const" in part or "enum" in part:
        return ", ".join(code(value) for value in part.get("enum", [part.get("const")]))
    for key in ("anyOf", "oneOf"):
        if key in part:
            return " or ".join(dict.fromkeys(allowed(one, definitions) for one in part[key]))
    kind = part.get("type", "anything")
    words = {"null": "nothing (`null`)", "array": "a list", "object": "a mapping", "string": "text"}.get(kind, kind)
    if part.get("type") == "array" and isinstance(part.get("items"), dict):
        words += f" of {allowed(part['items'], definitions)}"
    bounds = [f"{sign} {part[key]:.6g}" for key, sign in BOUNDS.items() if key in part and abs(part[key]) < 2**53]
    return " ".join([words, " and ".join(bounds)]).strip()


def rows(model: dict[str, Any], definitions: dict[str, Any], without: tuple[str, ...] = ()) -> list[str]:
    """One line per key."""
    lines = []
    for key, part in model.get("properties", {}).items():
        if key not in without:
            default = code(part["default"]) if "default" in part else "required" if key in model.get("required", []) else ""
            words = allowed(part, definitions).replace("|", "\\|")
            lines.append(f"| `{key}` | {default} | {words} | {cell(part.get('description', ''))} |")
    return [*HEAD, *lines, ""]


def reference(part: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The model that a property holds, directly, as an alternative to nothing, or for each name of a section."""
    for one in [part, *part.get("anyOf", []), *part.get("patternProperties", {}).values()]:
        if "$ref" in one:
            return definitions[one["$ref"].rsplit("/", 1)[-1]]
    return {}


def study_page(schema: dict[str, Any]) -> str:
    """All sections but runs and evaluations, and the mappings that keys of runs hold."""
    definitions = schema["$defs"]
    lines = ["# Settings of a study", "", "The sections of `config.yaml`.", "", *rows(schema, definitions)]
    inner = [item for model in definitions.values() for item in model.get("properties", {}).items()]
    shown: list[dict[str, Any]] = []
    for key, part in [*schema["properties"].items(), *inner]:
        model = reference(part, definitions)
        if "properties" in model and model not in shown and key not in ("runs", "evaluations", "settings"):
            shown.append(model)
            lines += [f"## {key}", "", cell(model.get("description") or part.get("description", "")), "", *rows(model, definitions)]
    return "\n".join(lines)


def section_page(title: str, section: str, schema: dict[str, Any]) -> str:
    """One heading per method or protocol: its own keys, then those of its `settings`."""
    definitions = schema["$defs"]
    (choice,) = schema["properties"][section]["patternProperties"].values()
    lines = [f"# {title}", ""]
    for name, path in choice["discriminator"]["mapping"].items():
        model = definitions[path.rsplit("/", 1)[-1]]
        settings = reference(model["properties"].get("settings", {}), definitions)
        description = settings.get("description") or model.get("description", "")
        lines += [f"## {name}", "", cell(description), "", *rows(model, definitions, (choice["discriminator"]["propertyName"], "settings"))]
        if settings:
            lines += [f"### settings of {name}", "", *rows(settings, definitions)]
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """Path below docs -> Markdown."""
    schema = json.loads(SCHEMA.read_text())
    return {
        "settings/study.md": study_page(schema),
        "settings/methods.md": section_page("Settings of the methods", "runs", schema),
        "settings/evaluations.md": section_page("Settings of the evaluations", "evaluations", schema),
    }


def on_files(files: "Files", config: Any) -> "Files":
    """Add the pages to those of the folder."""
    from mkdocs.structure.files import File

    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files
