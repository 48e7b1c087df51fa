"""How the tables of the world are written down: as plain text, which is easier to read and extend than quotes."""

from __future__ import annotations


def listed(text: str) -> tuple[str, ...]:
    """Single words with spaces between them."""
    return tuple(text.split())


def rows(names: str, table: str) -> list[dict[str, str]]:
    """Rows with commas between them, cells with colons, as slots: `rows("country capital", "France: Paris, ...")`."""
    keys = names.split()
    lines = [[" ".join(cell.split()) for cell in row.split(":")] for row in table.split(",")]
    if wrong := next((cells for cells in lines if len(cells) != len(keys) or not all(cells)), None):
        raise ValueError(f"the row {wrong} does not have the {len(keys)} cells of {names!r}: mend the table")
    return [dict(zip(keys, cells)) for cells in lines]
