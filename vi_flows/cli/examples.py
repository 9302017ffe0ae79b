"""What the end of ``--help`` shows: lines that can be typed."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["EXAMPLES", "examples_for"]

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("vi-flows demo", "vi-flows demo --out runs/quick --epochs 20 --num-samples 500"),
    "train vae": (
        "vi-flows train vae --out runs/digits --epochs 50",
        "vi-flows train vae --out runs/g1 --dataset binarized_mnist --batch-norm conv_flow --num-blocks 4",
        "vi-flows train vae --out runs/prior --prior maf --encoder-dims 500 500",
        "torchrun --nproc-per-node 4 -m vi_flows train vae --out runs/four --dataset binarized_mnist",
    ),
    "train image": ("vi-flows train image --out runs/glow --dataset mnist --epochs 6 glow --width 32",),
    "train pixel": ("vi-flows train pixel --out runs/made --dataset binarized_mnist made --hidden-dims 500",),
    "train pixel_vae": ("vi-flows train pixel_vae --out runs/lossy --dataset binarized_mnist --epochs 50",),
    "train wave": ("vi-flows train wave --out runs/speech --width 32 --epochs 20",),
    "train": ("vi-flows train --resume runs/g1",),
    "evaluate": (
        "vi-flows evaluate runs/g1",
        "vi-flows evaluate runs/g1 --split valid --num-samples 500",
        "vi-flows evaluate runs/g1 --ais --record results/g1.json",
        "vi-flows evaluate runs/g1 --refine 100 --limit 1000",
    ),
    "compare": ("vi-flows compare runs/g1 runs/g2", "vi-flows compare a.json b.json --score elbo"),
    "sample": (
        "vi-flows sample runs/g1",
        "vi-flows sample runs/glow --temperature 0.8 --out pictures",
    ),
    "runs": ("vi-flows runs", "vi-flows runs runs/table --json"),
    "results": ("vi-flows results runs", "vi-flows results experiments/results/vae --format github --picture vae.png"),
    "table run": (
        "vi-flows table run --rows 'binarized_mnist-g1-*-clean' --seeds 0 1 2 --processes 2",
        "vi-flows table run --shard 1/2",
    ),
    "table submit": ("vi-flows table submit --shards 8 --processes 4 --partition cpu --hours 12 --seeds 0 1 2",),
    "table status": ("vi-flows table status --seeds 0 1 2",),
    "table rows": ("vi-flows table rows",),
    "fit2d": ("vi-flows fit2d --target banana --flow conv_flow --num-blocks 8 --out runs/banana",),
    "data list": ("vi-flows data list",),
    "data check": ("vi-flows data check", "vi-flows data check binarized_mnist --data-root ~/data"),
    "data download": ("vi-flows data download binarized_mnist",),
    "bench": ("vi-flows bench --goals 1 3", "vi-flows bench --json --history experiments/results/bench"),
    "info": ("vi-flows info", "vi-flows info --json"),
}
"""By command: as few as say what it is for."""


def examples_for(words: Sequence[str]) -> list[str]:
    """The examples of the command that the words name, all of its commands' where it has several; none if unknown.

    Args:
        words: the command line, without the program.
    """
    named = [word for word in words if not word.startswith("-")][:2]
    exact = EXAMPLES.get(" ".join(named), ())
    if len(named) > 1 and exact:
        return list(exact)
    return [line for name, lines in EXAMPLES.items() if named and name.split()[0] == named[0] for line in lines]
