"""The picture of the rooms has every room and every import."""

from experiments.rooms import draw, files_of, places
from tests.test_structure import rooms


def test_every_room_is_drawn(tmp_path):
    where = places()
    assert set(where) == set(rooms())
    assert len(set(where.values())) == len(where)
    assert all(files_of(room) for room in where)
    draw(tmp_path / "rooms.png")
    assert (tmp_path / "rooms.png").read_bytes()[1:4] == b"PNG"
