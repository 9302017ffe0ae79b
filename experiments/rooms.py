"""Who imports whom: the rooms on their floors with an arrow for each import, and the lengths of the files.

    python -m experiments.rooms            # writes figures/rooms.png and prints the table

The floors are those of ``tests/test_structure.py``, which fails where a room imports from its own floor or above.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from tabulate import tabulate

from tests.test_structure import FLOOR_OF, FLOORS, PACKAGE, imported_rooms
from vi_flows.cli.outcome import exit_with

FIGURE = Path(__file__).parents[1] / "figures" / "rooms.png"


def files_of(room: str) -> list[Path]:
    """The room's Python files."""
    single = PACKAGE / f"{room}.py"
    return [single] if single.exists() else sorted((PACKAGE / room).rglob("*.py"))


def lengths_of(room: str) -> list[int]:
    """Lines of each of the room's files, the longest first."""
    return sorted((len(f.read_text(encoding="utf-8").splitlines()) for f in files_of(room)), reverse=True)


def places() -> dict[str, tuple[float, float]]:
    """Where each room stands: its floor from below, and side by side on it; many on a floor stand staggered."""
    found = {}
    for number, rooms in enumerate(FLOORS):
        there = sorted(room for room in rooms if files_of(room))
        for index, room in enumerate(there):
            lower = 0.55 * (index % 2) if len(there) > 4 else 0.0
            found[room] = ((index + 0.5) / len(there), number - lower)
    return found


def draw(path: Path) -> None:
    """The picture: an arrow goes from a room to each that it imports; those between neighbouring floors are dark."""
    figure = Figure(figsize=(11, 9), layout="constrained")
    axes = figure.subplots()
    where, boxes = places(), {}
    for room, (x, y) in where.items():
        lengths = lengths_of(room)
        words = (
            f"{room}\n{len(lengths)} files, {sum(lengths)} lines" if len(lengths) > 1 else f"{room}\n{lengths[0]} lines"
        )
        look = {"boxstyle": "round,pad=0.35", "fc": "white", "ec": "0.3"}
        boxes[room] = axes.text(x, y, words, ha="center", va="center", fontsize=7, zorder=2, bbox=look).get_bbox_patch()
    axes.set(xlim=(0, 1), ylim=(-1.0, len(FLOORS) - 0.5), title="Rooms and their imports, from the ground up")
    axes.axis("off")
    for room in where:
        for other in {name for file in files_of(room) for name in imported_rooms(file)} - {room}:
            near = FLOOR_OF[room] - FLOOR_OF[other] <= 1
            axes.add_patch(
                FancyArrowPatch(
                    where[room], where[other], arrowstyle="-|>", mutation_scale=10, zorder=1.5 if near else 1,
                    patchA=boxes[room], patchB=boxes[other], shrinkA=1, shrinkB=1,
                    color="C0" if near else "0.75", lw=1.2 if near else 0.6,
                )
            )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Draw, and print the lengths."""
    draw(FIGURE)
    rows = [
        (FLOOR_OF[room] + 1, room, len(lengths), sum(lengths), lengths[0], lengths[len(lengths) // 2])
        for room in places()
        for lengths in [lengths_of(room)]
    ]
    print(tabulate(rows, ["floor", "room", "files", "lines", "longest file", "median"]))
    print(FIGURE)


if __name__ == "__main__":
    exit_with("rooms", lambda _: main())
