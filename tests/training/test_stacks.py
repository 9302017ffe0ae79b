"""How runs are grouped into stacks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vi_flows.training import ImageTrainConfig, Run, Trainer, VAETrainConfig
from vi_flows.training.stacked import stacks_of
from vi_flows.vae import VAEConfig

CONFIG = VAETrainConfig(vae=VAEConfig(latent_dims=(3,), hidden_dims=((8,),)), epochs=1, batch_size=500, threads=1)


def test_stacks_hold_runs_that_differ_in_their_seeds_and_are_level(tmp_path):
    make = iter(range(100))

    def run(**changes):
        return Run.create(tmp_path / str(next(make)), replace(CONFIG, **changes))

    a, b, c, d = (run(seed=seed) for seed in range(4))
    other = run(learning_rate=1e-2)
    images = [Run.create(tmp_path / f"image{seed}", ImageTrainConfig(seed=seed)) for seed in range(2)]
    started, done = run(seed=7), run(seed=8)
    for trainer, until in ((Trainer(started, progress=False), 1), (Trainer(done, progress=False), None)):
        trainer.start()
        trainer.fit(until)
    assert done.saved_state["finished"]
    assert not started.saved_state["finished"]
    everything = [a, other, b, images[0], started, c, done, images[1], d]
    assert stacks_of(everything, 3) == [[a, b, c], [d], [other], [images[0]], [started], [images[1]]]
    assert [len(stack) for stack in stacks_of(everything, 1)] == [1] * 8
    with pytest.raises(ValueError, match="at least 1"):
        stacks_of(everything, 0)
