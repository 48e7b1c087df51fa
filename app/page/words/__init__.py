"""Every English string that the page shows, in one file that Python and the page's modules both read."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def words() -> dict[str, Any]:
    """Strings by group and key, such as `words()["tabs"]["talk"]`; read only."""
    return json.loads(Path(__file__).with_name("en.json").read_text(encoding="utf-8"))
