"""Short made-up recordings: a tone for each digit."""

import numpy as np
from scipy.io import wavfile


def write_recordings(folder, digits=range(10), takes=(0, 5, 10, 11), steps=60):
    folder.mkdir()
    random = np.random.RandomState(0)
    for digit in digits:
        for take in takes:
            time = np.arange(steps + take)
            tone = 0.3 * np.sin(0.2 * (1 + digit) * time + random.rand()) + 0.01 * random.randn(len(time))
            wavfile.write(folder / f"{digit}_ann_{take}.wav", 8000, (32767 * tone).astype(np.int16))
    return folder
