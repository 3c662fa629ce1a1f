"""What docs/architecture.md draws: which room may import which, and that every file stands in one of them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"sb3_gippo": ROOT / "sb3_gippo", "gippo_envs": ROOT / "envs" / "gippo_envs"}
PAGE = ROOT / "docs" / "architecture.md"
ALLOWED = {
    room: set(imports.replace("`", "").replace(",", " ").split()) - {"–"}
    for room, imports in re.findall(r"^\| `([a-z_]+)/` \| [^|]* \| ([^|]*) \|$", PAGE.read_text(), re.M)
}
"""by room of sb3_gippo, what the table of the page says it imports"""


def room(module: str) -> str:
    package, *rest = module.split(".")
    return package if package == "gippo_envs" else (rest[0] if rest else "sb3_gippo")


def imported(path: Path) -> set[str]:
    """:return: the rooms a file imports, wherever it does so, but for what is imported for types only"""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
        found.update(room(name) for name in names if name.split(".")[0] in PACKAGES)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def files(package: str) -> list[Path]:
    return sorted(PACKAGES[package].rglob("*.py"))


def test_every_room_is_on_the_page() -> None:
    rooms = {path.parent.name for path in files("sb3_gippo")} - {"sb3_gippo"}
    assert rooms == set(ALLOWED) and len(rooms) > 5


@pytest.mark.parametrize("path", files("sb3_gippo"), ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_what_the_page_says(path: Path) -> None:
    own = path.parent.name
    if own == "sb3_gippo":  # the package's front door
        return
    assert imported(path) - {own} <= ALLOWED[own] | ({"sb3_gippo"} if own == "cli" else set())


def test_there_is_no_circle() -> None:
    floors: dict[str, int] = {"gippo_envs": 0}
    while len(floors) < len(ALLOWED) + 1:
        ready = [name for name, below in ALLOWED.items() if name not in floors and below <= set(floors)]
        assert ready, f"a circle among {set(ALLOWED) - set(floors)}"
        floors.update({name: 1 + max((floors[other] for other in ALLOWED[name]), default=0) for name in ready})


@pytest.mark.parametrize("path", files("gippo_envs"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_environments_know_nothing_of_the_algorithms(path: Path) -> None:
    assert imported(path) <= {"gippo_envs"}
    text = path.read_text()
    assert "stable_baselines3" not in text and "import sb3" not in text
