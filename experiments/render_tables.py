"""Put the records of ``experiments/results`` into the README's tables, beside the papers' numbers.

python experiments/render_tables.py          # rewrites README.md between its table markers
python experiments/render_tables.py --check  # exit code 1 if the README is not what the records say
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script, this file has only its own folder there

from experiments.tables.curves import render_curves
from experiments.tables.densities import (
    render_image_pairs,
    render_images,
    render_pixel,
    render_pixel_vae,
    render_stability,
    render_wave,
)
from experiments.tables.gains import render_gains
from experiments.tables.posteriors import render_gallery, render_high_dimension, render_posteriordb, render_verdicts
from experiments.tables.speed import render_bench, render_generation
from experiments.tables.targets import render_fit2d, render_fit2d_targets
from experiments.tables.vae import render_refined, render_vae
from vi_flows.cli.outcome import exit_with

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"

SECTIONS = {
    "vae-tables": render_vae,
    "refined-table": render_refined,
    "fit2d-table": render_fit2d,
    "fit2d-targets-table": render_fit2d_targets,
    "gallery-table": render_gallery,
    "bench-table": render_bench,
    "image-table": render_images,
    "image-pairs-table": render_image_pairs,
    "stability-table": render_stability,
    "posteriordb-table": render_posteriordb,
    "verdicts-table": render_verdicts,
    "high-dimension-table": render_high_dimension,
    "generation-table": render_generation,
    "pixel-table": render_pixel,
    "pixel-vae-table": render_pixel_vae,
    "wave-table": render_wave,
    "gains-table": render_gains,
    "curves-table": render_curves,
}
"""By name: in README.md between ``<!-- NAME -->`` and ``<!-- /NAME -->``, in the site at ``<!-- record: NAME -->``."""


def on_the_site() -> set[str]:
    """Names of the tables that the pages of the site show; it renders them itself."""
    pages = (ROOT / "vi_flows" / "docs" / "pages").glob("*.md")
    return {
        name for page in pages for name in re.findall(r"<!-- record: ([\w-]+) -->", page.read_text(encoding="utf-8"))
    }


@dataclass
class Render:
    """Rewrite the README's tables from the records."""

    check: bool = False
    """Only compare."""

    def run(self) -> int:
        """Exit code 1 if the README differs from the records under --check."""
        old = new = README.read_text(encoding="utf-8")
        for name, render in SECTIONS.items():
            pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
            if not pattern.search(new):
                if name in on_the_site():
                    continue
                raise ValueError(
                    f"neither README.md has a section between <!-- {name} --> and <!-- /{name} --> nor a page of the "
                    f"site <!-- record: {name} -->"
                )
            text = render()
            new = pattern.sub(lambda match, text=text: f"{match[1]}{text}\n{match[2]}", new)
        if self.check:
            return int(new != old)
        README.write_text(new, encoding="utf-8")
        return 0


if __name__ == "__main__":
    exit_with("render_tables", lambda words: tyro.cli(Render, args=words).run())
