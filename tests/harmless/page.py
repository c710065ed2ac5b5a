"""Brings the list of the zoo in docs/no-harm.md up to date: `python -m tests.harmless.page`."""

from __future__ import annotations

from pathlib import Path

from tests.harmless.shape import Shape, all_shapes

PAGE = Path(__file__).parents[2] / "docs" / "no-harm.md"
BEGINS, ENDS = "<!-- zoo -->\n", "<!-- end -->\n"


def table() -> str:
    """A line for each script: its row's name, its variants, what it could notice."""
    lines = ["| row | variants | what a script of this kind could notice |", "|---|---|---|"]
    by_script: dict[str, list[Shape]] = {}
    for shape in all_shapes():
        by_script.setdefault(shape.script.stem, []).append(shape)
    for name, shapes in by_script.items():
        variants = [shape.name.partition("/")[2] for shape in shapes]
        said = ", ".join(f"`{variant}`" for variant in variants if variant)
        lines.append(f"| `zoo/{name}` | {said} | {shapes[0].about} |")
    return "\n".join(lines) + "\n"


def updated(text: str) -> str:
    """The page with the list as it should be."""
    before, _, rest = text.partition(BEGINS)
    return f"{before}{BEGINS}{table()}{ENDS}{rest.partition(ENDS)[2]}"


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
