"""The files of the corpus by their role, and options to read their values as stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RAW = {
    "engine": "h5ref",
    "mask_and_scale": False,
    "decode_times": False,
    "decode_coords": False,
    "concat_characters": False,
}


def rows(corpus: Path, *roles: str) -> list[dict[str, Any]]:
    manifest = json.loads((corpus / "MANIFEST.json").read_text())
    return [row for row in manifest["files"] if row["role"] in roles]
