"""Rows of data files: read CSV strictly, write JSON atomically."""

import csv
import json
import os
import re
from pathlib import Path
from typing import Any

SHOWN = 20  # bad lines that are listed before "and N more"


def read_csv(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The named columns of a UTF-8 CSV file with a header.

    Raises:
        ValueError: every bad line as `file:line: reason`; nothing is returned then.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ValueError(f"{path.name}:{line}: not UTF-8; save the file as UTF-8") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"{path.name}:{line}: holds a NUL byte; it is no text file")
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    bad: list[str] = []
    found: list[dict[str, str]] = []
    try:
        header = next(reader, [])
        if missing := [name for name in columns if name not in header]:
            raise ValueError(
                f"{path.name}:1: no column {', '.join(map(repr, missing))}; the columns are "
                f"{', '.join(map(repr, header)) or 'none'}: name others with --instruction-column "
                "and --output-column"
            )
        start = reader.line_num + 1
        for cells in reader:
            line, start = start, reader.line_num + 1
            if not cells:
                continue
            row = dict(zip(header, cells, strict=False))
            empty = [name for name in columns if not row.get(name, "").strip()]
            if len(cells) != len(header):
                bad.append(f"{path.name}:{line}: {len(cells)} cells, the header has {len(header)}")
            elif empty:
                bad.append(f"{path.name}:{line}: the cell `{empty[0]}` is empty")
            else:
                found.append({name: row[name] for name in columns})
    except csv.Error as error:
        bad.append(f"{path.name}:{reader.line_num}: {error}; check the quotes")
    if bad:
        more = f"\nand {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise ValueError("\n".join(bad[:SHOWN]) + more)
    if not found:
        raise ValueError(f"{path.name}:1: no rows below the header")
    return found


def safe_name(name: str) -> str:
    """A data set's name that is also a file name.

    Raises:
        ValueError: it could lead out of the output folder.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"--name {name!r}: use letters, digits, dot, dash and underscore only")
    return name


def write_text(path: Path, text: str) -> None:
    """All of the text, or the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Readable JSON, written atomically."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def merged_dataset_info(path: Path, name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """LLaMA-Factory's dataset_info.json with one more entry.

    Raises:
        ValueError: the file is broken, or has another entry of that name.
    """
    known: Any = {}
    if path.exists():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path.name}:{error.lineno}: {error.msg}; mend or move it") from None
    if not isinstance(known, dict):
        raise ValueError(f"{path.name}:1: must be a mapping of data sets; mend or move it")
    if known.get(name, entry) != entry:
        raise ValueError(
            f"{path.name}: has another data set called `{name}`; choose another --name"
        )
    return known | {name: entry}
