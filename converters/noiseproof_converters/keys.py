"""Every key of the `noiseproof:` block, read off the schema itself."""

import json
from dataclasses import dataclass
from typing import Any

from noiseproof.config import NoiseproofConfig


@dataclass(frozen=True)
class Key:
    """One key: its dotted path, type with bounds, default and description."""

    path: str
    type: str
    default: str
    description: str


def rows() -> list[Key]:
    """All keys, depth first in the order of the schema."""
    schema = NoiseproofConfig.model_json_schema()
    return list(_walk(schema, schema.get("$defs", {}), "noiseproof"))


def _walk(schema: dict[str, Any], defs: dict[str, Any], path: str) -> Any:
    for name, field in schema["properties"].items():
        here = f"{path}.{name}"
        default = field.get("default")
        shown = "-" if default is None else json.dumps(default).replace('"', "")
        yield Key(here, _type(field, defs), shown, field.get("description", ""))
        for option in field.get("anyOf", [field]):
            if "$ref" in option:
                yield from _walk(defs[option["$ref"].rsplit("/", 1)[-1]], defs, here)


def _type(field: dict[str, Any], defs: dict[str, Any]) -> str:
    if "anyOf" in field:
        kinds = [_type(option, defs) for option in field["anyOf"] if option.get("type") != "null"]
        return " or ".join(kinds)
    if "$ref" in field:
        return "mapping"
    if "enum" in field:
        return ", ".join(map(str, field["enum"]))
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}), defs)}"
    words = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {field[word]:g}" for word, sign in words.items() if word in field]
    return " ".join([field.get("type", "any"), *bounds])


def as_text() -> str:
    """Aligned for a terminal."""
    table = rows()
    width = max(len(key.path) for key in table)
    return "\n".join(
        f"{key.path:{width}}  {key.type} (default {key.default})\n{'':{width}}  {key.description}"
        for key in table
    )


def as_markdown() -> str:
    """The table of the README."""
    lines = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for key in rows():
        path = key.path.removeprefix("noiseproof.")
        lines.append(f"| `{path}` | {key.type} | {key.default} | {key.description} |")
    return "\n".join(lines)


def json_schema() -> str:
    """A schema of a recipe: our key is checked, everything else is left to the framework."""
    block = NoiseproofConfig.model_json_schema()
    defs = block.pop("$defs", {})
    schema = {"type": "object", "properties": {"noiseproof": block}, "$defs": defs}
    return json.dumps(schema, indent=2)
