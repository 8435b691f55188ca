"""What a run has finished, on disk: `<id>.png`, a line for each in `cases.jsonl`, and the settings
in `run.json`.

Pictures are written beside their place and then moved there, and their line follows: a run that is
killed at any moment leaves only whole pictures, and one without its line is made again.
"""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from PIL import Image

from bench.pie.dataset import PieError

Record = dict[str, Any]


class Store:
    """A folder of finished cases. PieError if it holds those of other settings."""

    def __init__(self, folder: pathlib.Path, settings: Record) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._check(settings)
        self._lines = folder / "cases.jsonl"
        self.records = {record["id"]: record for record in self._read()}

    def picture(self, name: str) -> pathlib.Path:
        """Where the edited picture of an id lies, or would."""
        return self.folder / f"{name}.png"

    def done(self, name: str) -> bool:
        """Whether an id has its picture and its line."""
        return "error" not in self.records.get(name, {"error": ""}) and self.picture(name).is_file()

    def failed(self, name: str) -> bool:
        """Whether an id was tried and could not be made."""
        return "error" in self.records.get(name, {})

    def keep(self, name: str, picture: Image.Image, **facts: Any) -> None:
        """Write a finished picture, then its line."""
        whole = self.folder / f".{name}.png"
        picture.save(whole)
        os.replace(whole, self.picture(name))
        self._add({"id": name, **facts})

    def fail(self, name: str, message: str) -> None:
        """Note that an id cannot be made, and why."""
        self._add({"id": name, "error": message})

    def _add(self, record: Record) -> None:
        self.records[record["id"]] = record
        with self._lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> list[Record]:
        """All whole lines; half a line, of a run that was killed, is taken out so that the next one
        starts afresh."""
        text = self._lines.read_text(encoding="utf-8") if self._lines.exists() else ""
        whole, _, torn = text.rpartition("\n")
        if torn:
            replace(self._lines, whole + "\n" if whole else "")
        return [json.loads(line) for line in whole.splitlines()]

    def _check(self, settings: Record) -> None:
        path = self.folder / "run.json"
        if not path.exists():
            replace(path, json.dumps(settings, indent=1) + "\n")
            return
        old = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name in {**old, **settings} if old.get(name) != settings.get(name)]
        if other:
            change = f"{other[0]} {old.get(other[0])!r}, now {settings.get(other[0])!r}"
            raise PieError(
                f"{self.folder} holds pictures made with {change}; give another --out or delete "
                "the folder"
            )


def replace(path: pathlib.Path, text: str) -> None:
    """Write a text file whole or not at all."""
    whole = path.with_name(f".{path.name}")
    whole.write_text(text, encoding="utf-8")
    os.replace(whole, path)
