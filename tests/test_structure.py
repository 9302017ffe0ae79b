"""The rooms of the package: who may import whom, and what the package's face shows."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vi_flows

PACKAGE = Path(vi_flows.__file__).parent
LEAVES = {
    "data",
    "expansion",
    "kernels",
    "locks",
    "nn",
    "parallel",
    "parameters",
    "plotting",
    "progress",
    "recording",
    "records",
    "settings",
    "traces",
}
FLOORS = [
    LEAVES,
    {"transforms"},
    {"flows"},
    {"distributions", "autoregressive"},
    {"objectives", "evaluation"},
    {"guides", "vae"},
    {"diagnostics"},
    {"training"},
    {"bench", "fit2d", "table"},
    {"cli"},
    {"__main__"},
]
"""From the ground up: a room imports from lower floors, and from the rooms beside it where :data:`BESIDE` says so."""
BESIDE = {
    ("evaluation", "objectives"),
    ("data", "settings"),
    ("plotting", "records"),
    ("plotting", "settings"),
    ("kernels", "recording"),
    ("nn", "recording"),
    ("settings", "recording"),
}
"""Arrows within a floor."""
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def imported_rooms(path: Path) -> set[str]:
    """Rooms of the package that a file imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
            if node.module == "vi_flows":
                names = [f"vi_flows.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("vi_flows.")}
    return found & set(FLOOR_OF)


def forbidden(room: str, other: str) -> bool:
    """Whether ``room`` must not import ``other``."""
    return room != other and FLOOR_OF[other] >= FLOOR_OF[room] and (room, other) not in BESIDE


def rooms() -> list[str]:
    """The rooms that exist."""
    found = {p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    return sorted(found | {p.stem for p in PACKAGE.glob("*.py") if p.stem != "__init__"})


def test_every_room_has_its_floor() -> None:
    assert set(rooms()) <= set(FLOOR_OF)


@pytest.mark.parametrize("room", rooms())
def test_a_room_imports_from_lower_floors_only(room: str) -> None:
    files = [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").exists() else (PACKAGE / room).rglob("*.py")
    wrong = {f"{f.name} imports {other}" for f in files for other in imported_rooms(f) if forbidden(room, other)}
    assert not wrong


def test_the_rule_can_fail(tmp_path: Path) -> None:
    file = tmp_path / "layer.py"
    file.write_text("def f():\n    from vi_flows.guides import fit\n    from vi_flows import cli\n")
    assert imported_rooms(file) == {"guides", "cli"}
    assert forbidden("transforms", "guides")
    assert not forbidden("guides", "transforms")


ARGUMENTS = {
    ("distributions/lean.py", "Bijection"): "an argument is checked",
    ("guides/datatree.py", "AutoFlow"): "an argument is checked",
    ("guides/auto_flow.py", "Bijection"): "a user's factory gives a transform of PyTorch's or Pyro's: adapted once",
    ("guides/pairs.py", "AutoFlow"): "a user's guide is any callable: adapted once",
    ("guides/posterior.py", "WhitenedAffine"): "tells the type checker what the guide's own constructor put there",
    (
        "cli/main.py",
        "SettingsError",
    ): "the command line's parser hides what a setting says of itself in an error of its own",
    ("transforms/image/multi_scale.py", "Bijection"): "a level without a prior holds PyTorch's identity",
    ("vae/config.py", "VectorFlow"): "the command line's parser asks whether a default is one",
    ("transforms/from_pyro.py", "Bijection"): "a site's transforms are whatever the user's guide took",
    ("objectives/path_gradient.py", "FlowNormal"): "a site's distribution is whatever the user's guide took",
    ("autoregressive/stepping.py", "MaskedConv2d"): "a head is a plain sequence of layers and ReLUs",
}
"""Where a class of another file is asked for, and why: what comes from outside, not what our own objects could say."""


def probes(source: str) -> set[str]:
    """Classes of other files of the package that a file tells its objects apart by, and attributes that it tries."""
    tree = ast.parse(source)
    ours = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vi_flows")
        for alias in node.names
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            found |= {inner.id for inner in ast.walk(node.args[1]) if isinstance(inner, ast.Name)} & ours
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and len(node.args) == 3:
            found |= {f"getattr {inner.value}" for inner in [node.args[1]] if isinstance(inner, ast.Constant)}
    return found


def test_objects_are_asked_and_not_told_apart() -> None:
    found = {
        (str(f.relative_to(PACKAGE)), name) for f in PACKAGE.rglob("*.py") for name in probes(f.read_text("utf-8"))
    }
    outside = {("data/pictures.py", "getattr n_frames"), ("parallel.py", "getattr __name__")}  # Pillow's, a function's
    assert found == set(ARGUMENTS) | outside


def test_a_probe_is_seen() -> None:
    text = "from vi_flows.guides import AutoFlow\nif isinstance(guide, AutoFlow | int): getattr(guide, 'dim', None)"
    assert probes(text) == {"AutoFlow", "getattr dim"}


BRITISH = re.compile(
    r"(initialis|optimis|normalis|vectoris|factoris|discretis|parameteris|standardis|colour|centre)", re.I
)


def identifiers(source: str) -> set[str]:
    """Names of variables, attributes, functions, classes and arguments."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        for field in ("id", "attr", "name", "arg"):
            if isinstance(value := getattr(node, field, None), str):
                found.add(value)
    return found


def test_identifiers_have_one_spelling() -> None:
    assert identifiers("class Colour:\n    def f(self, centre): x.y = normalised") == {
        "Colour", "f", "self", "centre", "x", "y", "normalised",
    }  # fmt: skip
    found = {name for f in PACKAGE.rglob("*.py") for name in identifiers(f.read_text("utf-8")) if BRITISH.search(name)}
    assert not found


def test_files_stay_readable() -> None:
    lines = {
        str(f.relative_to(PACKAGE)): len(f.read_text(encoding="utf-8").splitlines()) for f in PACKAGE.rglob("*.py")
    }
    assert {name: count for name, count in lines.items() if count > 420} == {}


def test_public_names_are_there_and_lazy() -> None:
    for name, room in vi_flows.ROOM_OF.items():
        assert getattr(vi_flows, name) is getattr(importlib.import_module(f"vi_flows.{room}"), name)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = vi_flows.no_such_name
    code = "import sys, vi_flows; print(sorted({'torch', 'pyro', 'matplotlib'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
