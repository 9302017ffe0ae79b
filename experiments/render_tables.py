"""Put the records of ``experiments/results`` into the README's tables, beside the papers' numbers.

python experiments/render_tables.py          # rewrites README.md between its table markers
python experiments/render_tables.py --check  # exit code 1 if the README is not what the records say
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from image_rows import markdown_table

from vi_flows.records import Record

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
DATASETS = {"binarized_mnist": "mnist", "omniglot28": "omniglot", "chardata": "omniglot"}
IMAGE_SETS = {
    "mnist": "MNIST, 28×28×1, uniform dequantisation",
    "cifar": "16 000 CIFAR-10 images after a JPEG round trip: a comparison side by side, not the published benchmark",
}


def sort_key(record: Record) -> tuple:
    """Plain models, then ConvFlow, then other flows."""
    vae, settings = record.settings["vae"], record.settings
    flow = vae["flow"] or {"type": ""}
    family = {"": "0", "ConvFlow": "1"}.get(flow["type"], flow["type"])
    length = next((value for value in flow.values() if isinstance(value, int)), 0)
    return settings["objective"], vae["num_extra_layers"], family, vae["amortized"], length, settings["epochs"]


def vae_table(records: list[Record], published: dict[str, Any], dataset: str, architecture: str) -> list[str]:
    paper = DATASETS[dataset]
    lines = [
        f"**{dataset}, {architecture.upper()}** (test NLL in nats, lower is better)",
        "",
        "| model | paper (2000 epochs) | ours | 95 % interval | −ELBO | k̂ > 0.7 | protocol, epochs, steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in sorted(records, key=sort_key):
        theirs = "–" if record.paper_row is None else f"{published['rows'][record.paper_row][paper][architecture]:.2f}"
        figures, settings = record.figures, record.settings
        low, high = figures["interval"]
        lines.append(
            f"| {record.label} | {theirs} | {figures['nll']:.2f} | {low:.2f} – {high:.2f} | {-figures['elbo']:.2f} "
            f"| {100 * figures['share_k_hat_above_0.7']:.0f} % | {settings['protocol']}, {settings['epochs']}, "
            f"{figures['steps']} |"
        )
    return lines


def render_vae() -> str:
    published = json.loads((HERE / "published.json").read_text(encoding="utf-8"))
    records = [Record.read(path) for path in sorted((HERE / "results" / "vae").glob("*.json"))]
    blocks: list[str] = []
    for dataset in DATASETS:
        for architecture in ("g1", "g2"):
            asked = (dataset, architecture)
            mine = [r for r in records if (r.settings["dataset"], r.settings["vae"]["architecture"]) == asked]
            if mine:
                blocks.append("\n".join(vae_table(mine, published, dataset, architecture)))
    return "\n\n".join(blocks) if blocks else "No records yet."


def flow_2d_label(settings: dict[str, Any]) -> str:
    if settings["flow"] != "conv_flow":
        return settings["flow"]
    # The records before dilations were an option have the paper's two layers a block.
    layers = len(settings.get("dilations", (1, 2)))
    return f"conv_flow K = {settings['num_blocks']}" + ("" if layers == 2 else ", a Revert after every layer")


def render_fit2d() -> str:
    rows = Record.read(HERE / "results" / "fit2d-wave.json").figures["rows"]
    lines = [
        "| flow | parameters | KL(q‖p) in nats | by quadrature | learning rate | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        result, trials = row["figures"]["result"], row["figures"]["trials"]
        exact = "–" if result["kl_quadrature"] is None else f"{result['kl_quadrature']:.4f}"
        lines.append(
            f"| {flow_2d_label(row['settings'])} | {result['num_parameters']} "
            f"| {result['kl']:.4f} ± {result['kl_se']:.4f} | {exact} | {trials[0]['learning_rate']} "
            f"| {result['seconds']:.0f} |"
        )
    return "\n".join(lines)


def render_fit2d_targets() -> str:
    path = HERE / "results" / "fit2d-targets.json"
    if not path.exists():
        return "No record yet."
    rows = Record.read(path).figures["rows"]
    targets = list(dict.fromkeys(row["settings"]["target"] for row in rows))
    flows = list(dict.fromkeys(flow_2d_label(row["settings"]) for row in rows))
    found = {(row["settings"]["target"], flow_2d_label(row["settings"])): row["figures"]["result"] for row in rows}
    lines = ["| target | log Z | " + " | ".join(flows) + " |", "|---|---|" + "---|" * len(flows)]
    for target in targets:
        results = [found.get((target, flow)) for flow in flows]
        cells = " | ".join("–" if r is None else f"{r['kl']:.3f} ± {r['kl_se']:.3f}" for r in results)
        lines.append(f"| {target} | {next(r for r in results if r)['log_z']:.4f} | {cells} |")
    return "\n".join(lines)


def render_gallery() -> str:
    lines = [
        "| posterior | guide | largest error of a mean, sd | sd ratios | ELBO | k̂ | verdict | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    names = [
        "eight_schools_noncentred", "eight_schools_centred", "kidscore", "logistic", "nile", "rats", "bnn",
    ]  # fmt: skip
    paths = [HERE / "results" / f"gallery-{name}.json" for name in names]
    for record in (Record.read(path) for path in paths if path.exists()):
        truth = record.figures["reference"]
        seconds = "–" if truth["seconds"] is None else f"{truth['seconds']:.0f}"
        lines.append(
            f"| **{record.label}** | {truth['source']}: R̂ ≤ {truth['max_r_hat']:.3f}, ESS ≥ {truth['min_ess']:.0f} "
            f"| | | | | | {seconds} |"
        )
        for row in record.figures["rows"]:
            if row["verdict"] == "diverged":
                lines.append(f"| | {row['guide']} | – | – | – | – | diverged | – |")
                continue
            lines.append(
                f"| | {row['guide']} | {row['max_mean_error_sd']:.2f} | {row['min_sd_ratio']:.2f} – "
                f"{row['max_sd_ratio']:.2f} | {row['elbo']:.2f} | {row['k_hat']:.2f} | {row['verdict']} "
                f"| {row['seconds']:.0f} |"
            )
    return "\n".join(lines)


def render_bench() -> str:
    latest = max((HERE / "results" / "bench").glob("*.json"))
    lines = ["| ratio of CPU times, one thread | measured | floor | goal |", "|---|---|---|---|"]
    for row in Record.read(latest).figures["rows"]:
        if row.get("goal_number") and row.get("ratio") is not None:
            sign = "≤" if row["goal"] < row["floor"] else "≥"
            missed = ", **missed**" if row["verdict"] == "below" else ""
            lines.append(
                f"| {row['title']} | {row['ratio']:.2f}{missed} | {sign} {row['floor']} | {sign} {row['goal']} |"
            )
    return "\n".join(lines)


def render_images() -> str:
    blocks = (f"**{title}**\n\n{markdown_table(HERE / 'results', name)}" for name, title in IMAGE_SETS.items())
    return "\n\n".join(blocks)


SECTIONS = {
    "vae-tables": render_vae,
    "fit2d-table": render_fit2d,
    "fit2d-targets-table": render_fit2d_targets,
    "gallery-table": render_gallery,
    "bench-table": render_bench,
    "image-table": render_images,
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
                raise SystemExit(f"README.md has no section between <!-- {name} --> and <!-- /{name} -->")
            text = render()
            new = pattern.sub(lambda match, text=text: f"{match[1]}{text}\n{match[2]}", new)
        if self.check:
            return int(new != old)
        README.write_text(new, encoding="utf-8")
        return 0


if __name__ == "__main__":
    raise SystemExit(tyro.cli(Render).run())
