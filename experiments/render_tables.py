"""Put the records of ``experiments/results`` into the README's tables, beside the papers' numbers.

python experiments/render_tables.py          # rewrites README.md between its table markers
python experiments/render_tables.py --check  # exit code 1 if the README is not what the records say
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from image_rows import markdown_table

from vi_flows.records import Record

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
DATASETS = {"binarized_mnist": "mnist", "omniglot28": "omniglot", "chardata": "omniglot"}
ABLATION = re.compile(r"ablation-binarized_mnist-g1-(?P<model>plain|amortized-k4-tanh)-(?P<change>.+)-e[0-9+]+-s[0-9]+")
STARTS = {"dreg": "from DReG", "iwae": "from IWAE-5"}
"""What a label says of a row that goes on from a run of such an objective, by its name in the run's."""
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


def stages(record: Record) -> list[tuple[int, int]]:
    """Epochs and steps of each run on the way to a record's weights, first to last."""
    found = [(record.settings["epochs"], record.figures["steps"])]
    source = record.provenance.get("started_from")
    while source is not None:
        found.insert(0, (source["epoch"], source["steps"]))
        source = source["started_from"]
    return found


def label_of(record: Record) -> str:
    """The record's label, and what it went on from where that was trained by IWAE already."""
    source = record.provenance.get("started_from")
    begun = [text for objective, text in STARTS.items() if source is not None and objective in source["model"]]
    return ", ".join([record.label, *begun])


def mean_of(records: list[Record], value: Callable[[Record], float]) -> float:
    return statistics.fmean(map(value, records))


def annealed(records: list[Record]) -> str:
    """NLL minus what annealing finds beyond the importance samples of the same images, and how many images."""
    with_ais = [record for record in records if "ais" in record.figures]
    if not with_ais:
        return "–"
    nll = mean_of(with_ais, lambda record: record.figures["nll"] - record.figures["ais"]["gap"])
    return f"{nll:.2f} ({with_ais[0].figures['ais']['num_rows']})"


def vae_table(records: list[Record], published: dict[str, Any], dataset: str, architecture: str) -> list[str]:
    """A line a row; seeds are averaged, and the interval over images is that of the first."""
    paper = DATASETS[dataset]
    lines = [
        f"**{dataset}, {architecture.upper()}** (test NLL in nats, lower is better)",
        "",
        "| model | paper (2000 epochs) | ours | 95 % interval | by AIS (images) | −ELBO | k̂ > 0.7 "
        "| protocol, epochs, steps, seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows: dict[Any, list[Record]] = {}
    for record in sorted(records, key=lambda record: (*sort_key(record), record.settings["seed"])):
        key = (label_of(record), record.settings["protocol"], *(epochs for epochs, _ in stages(record)))
        rows.setdefault(key, []).append(record)
    for seeds in rows.values():
        first = seeds[0]
        theirs = "–" if first.paper_row is None else f"{published['rows'][first.paper_row][paper][architecture]:.2f}"
        nll = mean_of(seeds, lambda record: record.figures["nll"])
        spread = f" ± {statistics.stdev(r.figures['nll'] for r in seeds):.2f}" if len(seeds) > 1 else ""
        low, high = first.figures["interval"]
        epochs, steps = (" + ".join(map(str, numbers)) for numbers in zip(*stages(first), strict=True))
        lines.append(
            f"| {label_of(first)} | {theirs} | {nll:.2f}{spread} | {low:.2f} – {high:.2f} | {annealed(seeds)} "
            f"| {mean_of(seeds, lambda record: -record.figures['elbo']):.2f} "
            f"| {100 * mean_of(seeds, lambda record: record.figures['share_k_hat_above_0.7']):.0f} % "
            f"| {first.settings['protocol']}, {epochs}, {steps}, {len(seeds)} |"
        )
    return lines


def ablation_table(records: list[tuple[Path, Record]]) -> str:
    """Changes of the recipe by their NLL on the validation images, best first for each model."""
    lines = [
        "**Changes of the recipe** (binarized_mnist, G1; NLL of the validation images in nats)",
        "",
        "| model | recipe | NLL | epochs | steps | training seconds, device |",
        "|---|---|---|---|---|---|",
    ]
    rows = [(record, ABLATION.fullmatch(path.stem)) for path, record in records]
    for record, named in sorted(
        rows, key=lambda row: (row[0].settings["vae"]["flow"] is not None, row[0].figures["nll"])
    ):
        epochs, steps = (" + ".join(map(str, numbers)) for numbers in zip(*stages(record), strict=True))
        seconds = record.provenance["training_seconds"]
        lines.append(
            f"| {named['model']} | {named['change']}, seed {record.settings['seed']} | {record.figures['nll']:.2f} "
            f"| {epochs} | {steps} | {seconds:.0f}, {record.provenance['device']} |"
        )
    return "\n".join(lines)


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
    ablations = [(path, Record.read(path)) for path in sorted((HERE / "results" / "vae" / "ablation").glob("*.json"))]
    if ablations:
        blocks.append(ablation_table(ablations))
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


def render_posteriordb() -> str:
    sys.path.insert(0, str(HERE.parent))
    from experiments.posteriordb.table import table

    return table(HERE / "results" / "posteriordb").rstrip()


def render_verdicts() -> str:
    sys.path.insert(0, str(HERE.parent))
    from experiments.verdicts.table import table

    return table(HERE / "results" / "verdicts").rstrip()


def render_high_dimension() -> str:
    sys.path.insert(0, str(HERE.parent))
    from experiments.high_dimension import table

    return table()


def render_generation() -> str:
    """Cached against naive generation, a line a model."""
    lines = ["| model | drawn at once | entries | seconds | naive / cached | parameters |", "|---|---|---|---|---|---|"]
    for row in Record.read(HERE / "results" / "generation-time.json").figures["rows"]:
        low, high = row["ratio_range"]
        lines.append(
            f"| {row['model']} | {row['events']} | {row['entries']} | {row['draw_seconds']:.2f} "
            f"| {row['ratio']:.0f} ({low:.0f} – {high:.0f}) | {row['parameters']:,} |"
        )
    return "\n".join(lines)


def published_pixel_row(record: Record) -> str:
    """The name of the papers' row that belongs beside a model of pixels, whether or not there is a number for it."""
    model = record.settings["pixel"]["model"]
    family = record.label.partition("-")[0]
    return f"{family}-ensemble" if model.get("num_masks", 1) > 1 else family


def trained_on(record: Record) -> str:
    """Minutes of training and the kind of device, which are read with the figure."""
    minutes = record.provenance["training_seconds"] / 60
    return f"{minutes:.0f} min, {'GPU' if record.settings['device'].startswith('cuda') else 'one core'}"


def render_pixel() -> str:
    """Autoregressive models of images: exact negative log-likelihoods."""
    published = json.loads((HERE / "published.json").read_text(encoding="utf-8"))["pixel"]["rows"]
    lines = [
        "| data set | model | paper | ours: NLL, nats | 95 % interval | parameters | epochs: of weights, of the run "
        "| trained |",
        "|---|---|---|---|---|---|---|---|",
    ]
    records = [Record.read(path) for path in sorted((HERE / "results" / "pixel").glob("*.json"))]
    for record in sorted(records, key=lambda record: (record.settings["dataset"], record.figures["nll"])):
        figures, settings = record.figures, record.settings
        low, high = figures["interval"]
        known = settings["dataset"] == "binarized_mnist" and "num_classes" not in figures
        paper = published.get(published_pixel_row(record)) if known else None
        label = record.label
        if "num_classes" in figures:
            label += f" (given the class; without it {figures['marginal_nll']:.2f}, "
            label += f"{100 * figures['class_accuracy']:.1f} % assigned)"
        lines.append(
            f"| {settings['dataset']} | {label} | {'–' if paper is None else f'{paper:.2f}'} | {figures['nll']:.2f} "
            f"| {low:.2f} – {high:.2f} | {figures['parameters']:,} | {figures['epoch_of_weights']}, "
            f"{settings['epochs']} | {trained_on(record)} |"
        )
    return "\n".join(lines)


def render_wave() -> str:
    """WaveNets: bits a sample of recorded speech, beside a trigram model's."""
    lines = [
        "| data set | model | bits/sample | 95 % interval | trigram model | samples seen | parameters | epochs "
        "| trained |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for record in (Record.read(path) for path in sorted((HERE / "results" / "wave").glob("*.json"))):
        figures, settings = record.figures, record.settings
        low, high = figures["interval"]
        lines.append(
            f"| {settings['dataset']} | {record.label} | {figures['bits_per_sample']:.3f} | {low:.3f} – {high:.3f} "
            f"| {figures['trigram_bits_per_sample']:.3f} | {figures['receptive_field']} "
            f"| {figures['parameters']:,} | {settings['epochs']} | {trained_on(record)} |"
        )
    return "\n".join(lines)


def render_pixel_vae() -> str:
    """VAEs with autoregressive decoders: the bound, its parts, and what the latent tells."""
    lines = [
        "| data set | model | NLL, nats (samples) | 95 % interval | −ELBO | KL | latent's worth | protocol, steps |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in (Record.read(path) for path in sorted((HERE / "results" / "pixel_vae").glob("*.json"))):
        figures, settings = record.figures, record.settings
        low, high = figures["interval"]
        worth = figures["reconstruction_of_others"] - figures["reconstruction"]
        lines.append(
            f"| {settings['dataset']} | {record.label} | {figures['nll']:.2f} ({figures['num_samples']}) "
            f"| {low:.2f} – {high:.2f} | {-figures['elbo']:.2f} | {figures['kl']:.2f} | {worth:.2f} "
            f"| {settings['protocol']}, {figures['steps']} |"
        )
    return "\n".join(lines)


def render_gains() -> str:
    """What a flow gains over the plain VAE of the same data, architecture, objective, protocol and seed, by images."""
    records = [Record.read(path) for path in sorted((HERE / "results" / "vae").glob("*.json"))]
    records = [record for record in records if "ais" in record.figures and record.settings["seed"] == 0]

    def group(record: Record) -> tuple[str, ...]:
        settings = record.settings
        return settings["dataset"], settings["vae"]["architecture"], settings["objective"], settings["protocol"]

    def is_plain(record: Record) -> bool:
        vae = record.settings["vae"]
        beyond = {"prior", "encoder_dims", "dropout"} & set(vae)  # left out of records at their defaults
        return vae["flow"] is None and not vae["num_extra_layers"] and not beyond

    plain = {group(record): record for record in records if is_plain(record)}
    lines = ["| data set, protocol | model | gain, nats an image | ± 1.96 standard errors |", "|---|---|---|---|"]
    for record in sorted(records, key=lambda record: (*group(record), sort_key(record))):
        if record.settings["vae"]["flow"] is None or group(record) not in plain:
            continue
        gains = plain[group(record)].scores["nll"].astype(float) - record.scores["nll"]
        mean, error = float(gains.mean()), 1.96 * float(gains.std(ddof=1)) / len(gains) ** 0.5
        dataset, architecture, _, protocol = group(record)
        lines.append(
            f"| {dataset}, {architecture.upper()}, {protocol} | {label_of(record)} | {mean:.2f} "
            f"| {mean - error:.2f} – {mean + error:.2f} |"
        )
    return "\n".join(lines)


def render_refined() -> str:
    """What the encoder's guesses cost: the bound before and after the guide was fitted to each image."""
    folders = (HERE / "results" / name for name in ("vae", "refined"))
    records = [Record.read(path) for folder in folders for path in sorted(folder.glob("*.json"))]
    lines = [
        "| data set | model | −ELBO | refined | amortisation gap | NLL | refined | steps, samples, images |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        if "refined" not in record.figures:
            continue
        figures, refined, settings = record.figures, record.figures["refined"], record.settings
        low, high = refined["elbo_gain_interval"]
        lines.append(
            f"| {settings['dataset']}, {settings['vae']['architecture'].upper()} | {label_of(record)} "
            f"| {-figures['elbo']:.2f} | {-refined['elbo']:.2f} | {refined['elbo_gain']:.2f} ({low:.2f} – {high:.2f}) "
            f"| {figures['nll']:.2f} | {refined['nll']:.2f} "
            f"| {refined['steps']}, {figures['num_samples']}, {figures['num_rows']} |"
        )
    return "\n".join(lines)


SECTIONS = {
    "vae-tables": render_vae,
    "refined-table": render_refined,
    "fit2d-table": render_fit2d,
    "fit2d-targets-table": render_fit2d_targets,
    "gallery-table": render_gallery,
    "bench-table": render_bench,
    "image-table": render_images,
    "posteriordb-table": render_posteriordb,
    "verdicts-table": render_verdicts,
    "high-dimension-table": render_high_dimension,
    "generation-table": render_generation,
    "pixel-table": render_pixel,
    "pixel-vae-table": render_pixel_vae,
    "wave-table": render_wave,
    "gains-table": render_gains,
}
"""By name: in README.md between ``<!-- NAME -->`` and ``<!-- /NAME -->``, in the site at ``<!-- record: NAME -->``."""


def on_the_site() -> set[str]:
    """Names of the tables that the pages of the site show; it renders them itself."""
    pages = (HERE.parent / "vi_flows" / "docs" / "pages").glob("*.md")
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
                raise SystemExit(
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
    raise SystemExit(tyro.cli(Render).run())
