"""The list of rows, and what a selection makes of it."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from vi_flows.flows import IAF, MAF
from vi_flows.table import RECIPES, Selection, Workplace, matching_rows, table_rows
from vi_flows.training import VAETrainConfig
from vi_flows.training.config import config_from_dict, config_to_dict
from vi_flows.vae import VAEConfig, build_vae

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
RESULTS = EXPERIMENTS / "results"
PUBLISHED = json.loads((EXPERIMENTS / "published.json").read_text(encoding="utf-8"))["rows"]
MODELS = {
    "plain": "plain", "plain-iwae50": "iwae50", "plus1": "plus1", "plus4": "plus4", "plus8": "plus8",
    "global-k1": "k1", "global-k2": "k2", "global-k4": "k4", "global-k8": "k8", "global-k8-iwae50": "k8-iwae50",
    "amortized-k1-tanh": "k1", "amortized-k2-tanh": "k2", "amortized-k4-tanh": "k4", "amortized-k8-tanh": "k8",
    "amortized-k8-tanh-iwae50": "k8-iwae50",
    "amortized-k8-tanh-dreg5": None, "amortized-k8-tanh-dreg5-iwae50": None,
    "amortized-k8-tanh-iwae5": None, "amortized-k8-tanh-iwae5-iwae50": None,
    "planar16": None, "planar80": "nf", "iaf": None, "sylvester": None,
    **{
        f"amortized-k8-tanh-{beyond}{recipe}": None
        for beyond in ("prior", "encoder", "prior-encoder")
        for recipe in ("", "-iwae50", "-dreg5", "-dreg5-iwae50", "-iwae5", "-iwae5-iwae50")
    },
}  # fmt: skip
"""Every model of both architectures, and the row of the paper whose number stands beside it."""
DIRECT = {"g1": "-dreg5", "g2": "-iwae5"}
"""What rows are called that are trained by an importance-weighted bound from the start: two latents bias DReG."""


def models_of(architecture):
    (other,) = [name for key, name in DIRECT.items() if key != architecture]
    return {
        model: paper_row for model, paper_row in MODELS.items() if not model.removesuffix("-iwae50").endswith(other)
    }


HAS_NF = ("binarized_mnist", "g2")
"""Where the paper has a number for planar flows."""


def test_the_list_is_every_model_on_every_data_set_under_both_protocols():
    rows = {name: row for name, row in table_rows().items() if not row.change}
    for dataset in ("binarized_mnist", "omniglot28", "chardata", "digits"):
        for architecture in ("g1", "g2"):
            for protocol in ("clean", "paper"):
                for model, paper_row in models_of(architecture).items():
                    row = rows.pop(f"{dataset}-{architecture}-{model}-{protocol}")
                    config = row.config
                    assert (config.dataset, config.vae.architecture, config.protocol) == (
                        dataset, architecture, protocol,
                    )  # fmt: skip
                    if dataset == "digits" or (model == "planar80" and (dataset, architecture) != HAS_NF):
                        paper_row = None
                    assert row.paper_row == paper_row
                    if paper_row is not None:
                        printed = PUBLISHED[paper_row]["mnist" if dataset == "binarized_mnist" else "omniglot"]
                        assert 80 < printed[architecture] < 110
    assert not rows


def test_every_row_of_the_paper_is_there():
    assert {row.paper_row for row in table_rows().values()} - {None} == set(PUBLISHED)


def test_the_recipes_are_those_of_the_records():
    standard = VAETrainConfig(
        vae=VAEConfig(batch_norm=True), batch_size=500, learning_rate=0.006, epochs=1000, kl_warmup_epochs=40.0,
        validate_every=5, valid_particles=5,
    )  # fmt: skip
    assert standard.schedule == "cosine"
    assert RECIPES["standard"] == standard
    rows = table_rows()
    plain = rows["binarized_mnist-g1-plain-clean"]
    assert plain.config == replace(standard, dataset="binarized_mnist")
    finish = rows["binarized_mnist-g1-plain-iwae50-clean"]
    assert finish.source == plain
    assert finish.config.vae == plain.config.vae
    assert (finish.config.objective, finish.config.num_particles, finish.config.kl_warmup_epochs) == ("iwae", 50, 0)
    direct = rows["binarized_mnist-g1-amortized-k8-tanh-dreg5-clean"].config
    assert replace(direct, objective="elbo", num_particles=1, valid_particles=5, vae=plain.config.vae) == plain.config
    assert (direct.objective, direct.num_particles, direct.valid_particles) == ("dreg", 5, 50)
    # chosen by a bound as tight as the one that is trained
    assert finish.config.valid_particles == 50
    assert rows["binarized_mnist-g1-amortized-k8-tanh-dreg5-iwae50-clean"].source.config == direct
    weighted = rows["binarized_mnist-g2-amortized-k8-tanh-iwae5-clean"].config
    assert weighted == replace(direct, objective="iwae", vae=replace(direct.vae, architecture="g2"))
    assert rows["binarized_mnist-g2-amortized-k8-tanh-iwae5-iwae50-clean"].source.config == weighted


@pytest.mark.parametrize("architecture", ["g1", "g2"])
def test_every_model_can_be_trained(architecture):
    x = torch.bernoulli(torch.rand(3, 20))
    sizes = {}
    rows = table_rows()
    configs = {model: rows[f"digits-{architecture}-{model}-clean"].config.vae for model in models_of(architecture)}
    for config, model in {config: model for model, config in reversed(configs.items())}.items():
        vae = build_vae(config, 20)
        terms = vae.log_weight_terms(x, 2)
        terms.log_weights().sum().backward()
        parts = [vae.guide, vae.model.networks, *filter(None, [vae.model.prior_flow])]
        assert all(p.grad is not None and p.grad.isfinite().all() for part in parts for p in part.parameters())
        sizes[model] = sum(p.numel() for p in vae.parameters())
    assert sizes["plain"] < sizes["global-k1"] < sizes["global-k8"] < sizes["amortized-k8-tanh"]
    assert sizes["planar16"] < sizes["planar80"]


@pytest.mark.parametrize(("architecture", "wide"), [("g1", ((500, 500),)), ("g2", ((300, 300), (500, 500)))])
def test_rows_beyond_the_paper_differ_from_the_best_one_in_what_they_are_called_by(architecture, wide):
    rows = table_rows()
    prior = MAF(num_layers=4, hidden_dims=(256,))
    recipe = DIRECT[architecture]
    for beyond, settings in {
        "prior": dict(prior=prior), "encoder": dict(encoder_dims=wide),
        "prior-encoder": dict(prior=prior, encoder_dims=wide),
    }.items():  # fmt: skip
        for suffix, source in {"": None, "-iwae50": "", recipe: None, f"{recipe}-iwae50": recipe}.items():
            name = f"binarized_mnist-{architecture}-amortized-k8-tanh"
            base, row = rows[f"{name}{suffix}-clean"], rows[f"{name}-{beyond}{suffix}-clean"]
            assert row.config == replace(base.config, vae=replace(base.config.vae, **settings))
            assert row.paper_row is None
            assert row.source == (None if source is None else rows[f"{name}-{beyond}{source}-clean"])
    labels = [rows[f"digits-{architecture}-amortized-k8-tanh-{row}-clean"].config.label for row in BEYOND]
    sizes = "500-500" if architecture == "g1" else "300-300 / 500-500"
    model = "VAE + ConvFlow (K = 8, tanh), amortized"
    assert labels == [
        f"{model}, prior MAF (4)", f"{model}, encoder {sizes}, IW = 50", f"{model}, encoder {sizes}, prior MAF (4)",
    ]  # fmt: skip


BEYOND = ("prior", "encoder-iwae50", "prior-encoder")


def test_keys_and_settings_of_earlier_runs_stay_what_they_were():
    """A setting that came later is left out of them at its default."""
    rows = table_rows()
    keys = {
        "binarized_mnist-g1-plain-clean": "binarized_mnist-g1-bn-clean-e1000-s0-19a31d99",
        "omniglot28-g2-global-k8-paper": "omniglot28-g2-bn-conv_flow-global-k8-paper-e1000-s0-dcd9fbe0",
        "binarized_mnist-g1-amortized-k8-tanh-clean":
            "binarized_mnist-g1-bn-conv_flow-amortized-k8-tanh-clean-e1000-s0-c21e844c",
    }  # fmt: skip
    assert {name: rows[name].config.key for name in keys} == keys
    records = sorted((RESULTS / "vae").glob("*.json"))
    assert len(records) > 20
    for path in records:
        settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
        del settings["evaluation"]
        assert config_to_dict(config_from_dict(VAETrainConfig, settings)) == settings


def test_ablations_change_one_thing_and_see_the_validation_images_alone():
    rows = table_rows()
    found = {name: row for name, row in rows.items() if row.change}
    assert all(name.startswith("ablation-binarized_mnist-g1-") for name in found)
    for model in ("plain", "amortized-k4-tanh"):
        base = rows[f"binarized_mnist-g1-{model}-clean"]
        finish = replace(rows["binarized_mnist-g1-plain-iwae50-clean"].config, vae=base.config.vae)
        for change, row in [(r.change, r) for r in found.values() if r.model == model]:
            assert (row.split, row.paper_row, row.config.protocol) == ("valid", None, "clean")
            standard = rows[f"ablation-binarized_mnist-g1-{model}-standard"]
            assert row.source == (standard if change.startswith("finish") else None)
            before = base.config if row.source is None else finish
            names = [f.name for f in fields(before) if getattr(before, f.name) != getattr(row.config, f.name)]
            if change in ("standard", "finish"):
                assert names == []
            elif change not in ("paper", "no-batch-norm", "iwae-1-5-50"):
                assert len(names) == 1, change
    assert len({row.change for row in found.values()}) * 2 == len(found)
    job = Selection(rows=("ablation-*-plain-ema",)).jobs()[0]
    assert job.record(Workplace(results=Path("there"))) == Path("there/ablation") / f"{job.name}.json"
    assert rows["digits-g1-plain-clean"].split == "test"


def test_other_epochs_scale_the_schedule_and_are_refused_where_they_are_the_change():
    place = Workplace()
    plain = "ablation-binarized_mnist-g1-plain"
    for epochs, ends in ((None, (880, 970)), (1000, (880, 970)), (500, (440, 485))):
        (job,) = Selection(rows=(f"{plain}-iwae-1-5-50",), epochs=epochs).jobs()
        assert job.settings(place).particles_epochs == ends
    with pytest.raises(ValueError, match="3 parts, and there are 2 epochs"):
        Selection(rows=(f"{plain}-iwae-1-5-50",), epochs=2).jobs()[0].settings(place)
    for row, words in (("epochs-500", {"epochs": 30}), ("finish-30", {"finish_epochs": 5})):
        option = next(iter(words)).replace("_", "-")
        with pytest.raises(
            ValueError, match=f"--{option} .* would make {plain}-{row} .*leave out --{option} or that row"
        ):
            Selection(rows=(f"{plain}-*-*",), **words).jobs()
        assert Selection(rows=(f"{plain}-{row}",)).jobs()
    asked = Selection(rows=(f"{plain}-[!ef]*",), epochs=500).jobs()
    assert len({job.settings(place).key for job in asked}) == len(asked)


def test_patterns_choose_rows_in_the_order_of_the_tables():
    found = [row.name for row in matching_rows(("omniglot28-g2-pl*-paper", "binarized_mnist-g1-iaf-clean"))]
    assert found == [
        "binarized_mnist-g1-iaf-clean", "omniglot28-g2-plain-paper", "omniglot28-g2-plain-iwae50-paper",
        "omniglot28-g2-plus1-paper", "omniglot28-g2-plus4-paper", "omniglot28-g2-plus8-paper",
        "omniglot28-g2-planar16-paper", "omniglot28-g2-planar80-paper",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no row matches 'g1-plain'"):
        matching_rows(("digits-g1-plain-clean", "g1-plain"))


def test_a_run_is_a_row_a_seed_and_a_number_of_epochs():
    selection = Selection(rows=("digits-g1-plain-iwae50-clean", "digits-g1-iaf-clean"), seeds=(3, 1), finish_epochs=7)
    names = [job.name for job in selection.jobs()]
    assert names == [
        "digits-g1-plain-clean-e1000-s3", "digits-g1-plain-iwae50-clean-e1000+7-s3", "digits-g1-iaf-clean-e1000-s3",
        "digits-g1-plain-clean-e1000-s1", "digits-g1-plain-iwae50-clean-e1000+7-s1", "digits-g1-iaf-clean-e1000-s1",
    ]  # fmt: skip
    place = Workplace(runs=Path("here"), data_root=Path("data"))
    source, finish = replace(selection, epochs=20).jobs()[:2]
    assert source.name == "digits-g1-plain-clean-e20-s3"
    config = source.config(place, "cuda", cuda_graph=True)
    assert (config.epochs, config.seed, config.device, config.cuda_graph, config.threads) == (20, 3, "cuda", True, 1)
    assert config.data_root == Path("data")
    assert config.start_from is None
    assert finish.config(place).epochs == 7
    assert finish.config(place).start_from == Path("here/digits-g1-plain-clean-e20-s3")


def test_shards_share_the_runs_out_and_keep_those_together_that_start_from_each_other():
    patterns = ("digits-g1-p*-clean", "digits-g1-amortized*-clean")
    whole = [job.name for job in Selection(rows=patterns, seeds=(0, 1)).jobs()]
    parts = [Selection(rows=patterns, seeds=(0, 1), shard=f"{i}/3").jobs() for i in (1, 2, 3)]
    assert sorted(whole) == sorted(job.name for part in parts for job in part)
    assert all(len(part) >= len(whole) // 3 - 2 for part in parts)
    for part in parts:
        names = [job.name for job in part]
        sources = [job.source.name for job in part if job.source is not None]
        assert set(sources) <= set(names)
    assert any(job.source for part in parts for job in part)


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2"])
def test_parts_that_are_none_are_refused(shard):
    with pytest.raises(ValueError, match="shard must be i/n"):
        Selection(rows=("digits-*",), shard=shard).jobs()


def test_iaf_has_its_papers_gate() -> None:
    """With scales up to e² the training bound ran away to −10⁶ nats within 60 epochs."""
    assert table_rows()["binarized_mnist-g1-iaf-clean"].config.vae.flow == IAF(scale="sigmoid")
