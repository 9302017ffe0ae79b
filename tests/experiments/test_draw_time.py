"""``experiments/draw_time``: the exponent of known times, and a record of small sizes."""

import pytest

from experiments import draw_time
from vi_flows.records import Record


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_is_that_of_the_times(power):
    rows = [{"dim": dim, "draw": 3.0 * dim**power} for dim in (2, 5, 40, 300)]
    assert draw_time.exponent(rows, "draw") == pytest.approx(power)


def test_a_record_of_two_sizes(tmp_path, capsys):
    draw_time.DrawTime(dims=(2, 3), num_draws=4, rounds=2, out=tmp_path / "times.json").run()
    shown = capsys.readouterr().out
    figures = Record.read(tmp_path / "times.json").figures
    assert [row["dim"] for row in figures["rows"]] == [2, 3]
    for row in figures["rows"]:
        assert row["draw_range"][0] <= row["draw"] <= row["draw_range"][1]
        assert 0 < row["draw"] < row["gradient"]
        assert f"| {row['dim']} | {row['draw']:.1f} | {1e3 * row['draw'] / row['dim']:.0f} |" in shown
    draw_time.DrawTime(out=tmp_path / "times.json", only_table=True).run()
    assert capsys.readouterr().out == shown


def test_one_size_has_no_exponent(tmp_path):
    with pytest.raises(ValueError, match="two sizes"):
        draw_time.DrawTime(dims=(5,), out=tmp_path / "times.json").run()
