"""Two-dimensional targets: the wave, and the papers' energies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vi_flows.records import Record

__all__ = ["render_fit2d", "render_fit2d_targets"]

RESULTS = Path(__file__).parents[1] / "results"


def label_of(settings: dict[str, Any]) -> str:
    """A flow by its name and size."""
    if settings["flow"] != "conv_flow":
        return settings["flow"]
    # The records before dilations were an option have the paper's two layers a block.
    layers = len(settings.get("dilations", (1, 2)))
    return f"conv_flow K = {settings['num_blocks']}" + ("" if layers == 2 else ", a Revert after every layer")


def render_fit2d() -> str:
    """Flows on the wave."""
    rows = Record.read(RESULTS / "fit2d-wave.json").figures["rows"]
    lines = [
        "| flow | parameters | KL(q‖p) in nats | by quadrature | learning rate | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        result, trials = row["figures"]["result"], row["figures"]["trials"]
        exact = "–" if result["kl_quadrature"] is None else f"{result['kl_quadrature']:.4f}"
        lines.append(
            f"| {label_of(row['settings'])} | {result['num_parameters']} "
            f"| {result['kl']:.4f} ± {result['kl_se']:.4f} | {exact} | {trials[0]['learning_rate']} "
            f"| {result['seconds']:.0f} |"
        )
    return "\n".join(lines)


def render_fit2d_targets() -> str:
    """KL of each flow on each target."""
    path = RESULTS / "fit2d-targets.json"
    if not path.exists():
        return "No record yet."
    rows = Record.read(path).figures["rows"]
    targets = list(dict.fromkeys(row["settings"]["target"] for row in rows))
    flows = list(dict.fromkeys(label_of(row["settings"]) for row in rows))
    found = {(row["settings"]["target"], label_of(row["settings"])): row["figures"]["result"] for row in rows}
    lines = ["| target | log Z | " + " | ".join(flows) + " |", "|---|---|" + "---|" * len(flows)]
    for target in targets:
        results = [found.get((target, flow)) for flow in flows]
        cells = " | ".join("–" if r is None else f"{r['kl']:.3f} ± {r['kl_se']:.3f}" for r in results)
        lines.append(f"| {target} | {next(r for r in results if r)['log_z']:.4f} | {cells} |")
    return "\n".join(lines)
