import json

from tests.image.test_experiments import script


def test_generation_time(tmp_path, capsys):
    module = script("generation_time")
    options = module.Options(tmp_path / "t.json", 5, 2, 20, 8, 1, made_width=6, repetitions=1)
    module.main(options)
    rows = json.loads((tmp_path / "t.json").read_text())["figures"]["rows"]
    assert [row["model"] for row in rows] == [
        "pixel_cnn",
        "gated_pixel_cnn",
        "diagonal_bilstm",
        "row_lstm",
        "made",
        "wavenet",
    ]
    assert [row["entries"] for row in rows] == [25, 25, 25, 25, 25, 20]
    assert all(row["ratio"] > 0 for row in rows)
    assert "naive" in capsys.readouterr().out
