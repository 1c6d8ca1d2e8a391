"""The table of settings in the operator's guide, made from the model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from .config import RELOADABLE, VARIABLES, Settings


def markdown() -> str:
    """One row per setting in the model's order, with a newline at the end of each.

    A star marks the settings that SIGHUP reads again.
    """
    rows = ["| Variable | Default | Accepts | Meaning |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        star = " *" if name in RELOADABLE else ""
        accepts = str(_said(field).get("accepts") or _accepts(field))
        cells = (f"`{VARIABLES[name]}`{star}", _default(field), accepts, field.description or "")
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows) + "\n"


def _default(field: FieldInfo) -> str:
    if "default" in (said := _said(field)):
        return str(said["default"])
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    if field.default is None:
        return "none"
    return f"`{field.default:g}`" if isinstance(field.default, float) else f"`{field.default}`"


def _said(field: FieldInfo) -> Mapping[str, Any]:
    """What the model itself says where the type does not tell."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _accepts(field: FieldInfo) -> str:
    kinds = _leaves(field.annotation)
    if SecretStr in kinds:
        return "URL"
    if bool in kinds:
        return "`true`, `false`"
    if Path in kinds:
        return "path"
    if choices := [kind for kind in kinds if isinstance(kind, str)]:
        return ", ".join(f"`{choice}`" for choice in choices)
    lowest = [str(mark.ge) for mark in field.metadata if isinstance(mark, Ge)]
    highest = [str(mark.le) for mark in field.metadata if isinstance(mark, Le)]
    if lowest and highest:
        return f"{'whole number' if int in kinds else 'number'}, {lowest[0]} to {highest[0]}"
    return "text"


def _leaves(annotation: Any) -> list[Any]:
    """The types and literal values that an annotation is built from."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    arguments = get_args(annotation)
    return [leaf for argument in arguments for leaf in _leaves(argument)] if arguments else [annotation]
