"""Spectrograms of what ``vi-flows sample`` writes of a WaveNet.

vi-flows sample RUN --out FOLDER --rows 1 --columns 10
python experiments/wave_figure.py FOLDER --out figures/wavenet.png
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure
from scipy.io import wavfile

from vi_flows.cli.outcome import exit_with

TITLES = {
    "data": "test recordings of the digits 0 to 9",
    "samples": "samples, told the digits 0 to 9",
    "continuations": "the first quarter from test recordings, the rest drawn",
}
"""Files of the folder, and what they hold."""


@dataclass(frozen=True)
class Options:
    """What to draw."""

    folder: tyro.conf.Positional[Path]
    """With the WAV files."""
    out: Path = Path("figures/wavenet.png")
    """The picture."""


def main(options: Options) -> None:
    """Write the picture and print where it is."""
    sounds = {name: wavfile.read(options.folder / f"{name}.wav") for name in TITLES}
    longest = max(len(samples) / rate for rate, samples in sounds.values())
    figure = Figure(figsize=(9.0, 6.0), layout="constrained")
    panels = figure.subplots(len(sounds), 1, sharex=True, sharey=True)
    for panel, (name, (rate, samples)) in zip(panels, sounds.items(), strict=True):
        # Full scale is 0 dB; a window is 16 ms at 8 kHz. Pauses have no logarithm and stay white.
        with np.errstate(divide="ignore"):
            panel.specgram(samples / 32768, NFFT=128, noverlap=96, Fs=rate, vmin=-120, vmax=-40, cmap="magma")
        panel.set_title(TITLES[name], fontsize=9, loc="left")
        panel.set_ylabel("Hz", fontsize=8)
        panel.set_xlim(0, longest)
        panel.tick_params(labelsize=8)
    panels[-1].set_xlabel("seconds", fontsize=8)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=60)
    print(options.out)


if __name__ == "__main__":
    exit_with("wave_figure", lambda words: main(tyro.cli(Options, args=words)))
