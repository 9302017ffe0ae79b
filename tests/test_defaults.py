"""What functions and settings do where nothing is said: the documented defaults, written down once more."""

from __future__ import annotations

import importlib
import inspect
import math

import pytest

DEFAULTS = {
    "training.budget:BudgetTrainer": {"wall_seconds": math.inf},
    "training.captured:CapturedTrainer": {"progress": True, "tensorboard": False},
    "training.captured:trainer_for": {"progress": True, "tensorboard": False},
    "training.config:first_difference": {"left_out": ()},
    "training.evaluate:evaluate_run": {"weights": "auto", "overwrite": False, "progress": True},
    "training.kinds:Kind": {"figure": "nll"},
    "training.log:RunLog": {"tensorboard": False},
    "training.loop:Trainer": {"progress": True, "tensorboard": False},
    "training.loop:Trainer.make_step": {"stacked": False},
    "training.run:Run.load_weights": {"which": "auto"},
    "training.stacked:StackedTrainer": {"progress": True},
    "training.tasks.base:BinaryDrawingSettings": {"rows": 10, "columns": 10, "binary": False},
    "training.tasks.base:DrawingSettings": {"rows": 10, "columns": 10},
    "training.tasks.base:EvaluationSettings": {"split": "test", "seed": 0},
    "training.tasks.exact:ExactTask.scores": {"progress": False},
    "training.tasks.exact:ExactTask.exact_scores": {"progress": False},
    "training.tasks.image:ImageDrawingSettings": {"rows": 10, "columns": 10, "temperature": 1.0},
    "training.tasks.image:ImageEvaluationSettings": {"split": "test", "seed": 0, "num_samples": 8},
    "training.tasks.pixel_vae:PixelVAEEvaluationSettings": {"split": "test", "seed": 0, "num_samples": 100},
    "training.tasks.vae:VAEEvaluationSettings": {"split": "test", "seed": 0, "num_samples": 5000},
    "training.tasks.wave:WaveConfig": {
        "width": 32,
        "skip_width": 64,
        "num_layers": 10,
        "num_stacks": 1,
        "kernel_size": 2,
        "output": "categorical",
        "digit": True,
    },
    "training.weights:Weights.path": {"which": "auto"},
    "training.weights:Weights.read": {"which": "auto"},
    "training.weights:Weights.sha256": {"which": "auto"},
    "vae.annealing:AnnealingSpace": {"draws_at_once": 2000},
    "vae.config:VAEConfig": {
        "architecture": "g1",
        "activation": "tanh",
        "batch_norm": False,
        "num_extra_layers": 0,
        "amortized": True,
    },
    "vae.evidence:AISSettings": {
        "chains": 8,
        "temperatures": 800,
        "leapfrog": 8,
        "images": 1000,
        "start": "gaussian",
        "model_images": 100,
    },
    "vae.evidence:VAEEvidence": {"annealing_seconds": 0.0},
    "vae.evidence:annealed_vae": {"seed": 0, "progress": False},
    "vae.evidence:evaluate_vae": {"num_samples": 5000, "seed": 0, "progress": False},
    "vae.evidence:simulated_bounds": {"seed": 0, "progress": False},
    "vae.flow_likelihood:FlowLikelihoodVAE": {"latent_dim": 16, "hidden_dims": (200, 200), "activation": "tanh"},
    "vae.flow_likelihood:FlowLikelihoodVAE.likelihood": {"temperature": 1.0},
    "vae.flow_likelihood:FlowLikelihoodVAE.model": {"size": 1},
    "vae.flow_likelihood:FlowLikelihoodVAE.guide": {"size": 1},
    "vae.flow_likelihood:FlowLikelihoodVAE.bits_per_dim": {"num_particles": 1},
    "vae.flow_likelihood:FlowLikelihoodVAE.sample": {"temperature": 1.0},
    "vae.guide:AmortizedGuide": {
        "latent_dims": (50,),
        "hidden_dims": ((200, 200),),
        "activation": "tanh",
        "batch_norm": False,
        "num_extra_layers": 0,
    },
    "vae.model:GenerativeModel": {
        "latent_dims": (50,),
        "hidden_dims": ((200, 200),),
        "activation": "tanh",
        "batch_norm": False,
    },
    "vae.model:LatentChain": {
        "latent_dims": (50,),
        "hidden_dims": ((200, 200),),
        "activation": "tanh",
        "batch_norm": False,
    },
    "vae.model:LatentChain.prior": {"size": 1},
    "vae.pixel_decoder:PixelDecoderModel": {
        "latent_dims": (50,),
        "hidden_dims": ((200, 200),),
        "activation": "tanh",
        "batch_norm": False,
    },
    "vae.vae:VAE.log_weight_terms": {"num_particles": 1},
    "vae.vae:VAE.path_log_weight_terms": {"num_particles": 1},
    "vae.vae:LogWeightTerms.log_weights": {"kl_weight": 1.0},
    "objectives.bounds:ELBO": {
        "num_particles": 1,
        "kl_weight": 1.0,
        "max_plate_nesting": math.inf,
        "vectorize_particles": False,
    },
    "objectives.bounds:IWAE": {
        "num_particles": 1,
        "kl_weight": 1.0,
        "max_plate_nesting": math.inf,
        "vectorize_particles": False,
    },
    "objectives.bounds:WeightTerms.log_weights": {"kl_weight": 1.0},
    "objectives.bounds:elbo_bound": {"kl_weight": 1.0},
    "objectives.bounds:iwae_bound": {"kl_weight": 1.0},
    "objectives.direct:DirectObjective": {"path": False, "gated": False},
    "objectives.direct:WeightedModel.log_weight_terms": {"num_particles": 1},
    "objectives.direct:WeightedModel.path_log_weight_terms": {"num_particles": 1},
    "objectives.gradient_estimators:DReG": {
        "num_particles": 1,
        "kl_weight": 1.0,
        "max_plate_nesting": math.inf,
        "vectorize_particles": False,
    },
    "objectives.gradient_estimators:RenyiBound": {"alpha": 0.0, "num_particles": 2},
    "objectives.gradient_estimators:StickingTheLanding": {
        "num_particles": 1,
        "kl_weight": 1.0,
        "max_plate_nesting": math.inf,
        "vectorize_particles": False,
    },
    "objectives.path_gradient:dreg_factor": {"kl_weight": 1.0},
    "objectives.step:OptimizerStep": {"max_norm": math.inf, "stacked": False},
    "objectives.traced:TracedBound": {
        "num_particles": 1,
        "kl_weight": 1.0,
        "max_plate_nesting": math.inf,
        "vectorize_particles": False,
    },
    "objectives.traced:TracedWeights.log_weights": {"kl_weight": 1.0},
    "diagnostics.attributes:attribute_directions": {"partial": True},
    "diagnostics.attributes:measure_digits": {"threshold": 0.5},
    "diagnostics.calibration:expected_coverage": {
        "num_replications": 1000,
        "num_draws": 200,
        "seed": 0,
        "progress": True,
    },
    "diagnostics.calibration:simulation_based_calibration": {
        "num_replications": 100,
        "num_draws": 200,
        "seed": 0,
        "progress": True,
    },
    "diagnostics.chains:moved_by_chains": {"num_transitions": 8, "num_leapfrog": 4, "seed": 0},
    "diagnostics.diagnose:diagnose": {"num_samples": 4000, "num_paths": 200, "num_chains": 500, "seed": 0},
    "diagnostics.elsewhere:missed_mass": {"num_paths": 200, "num_draws": 500, "seed": 0},
    "diagnostics.measures:active_units": {"threshold": 0.01},
    "evaluation.ais:annealed_evidence": {"chains": 8, "leapfrog": 8},
    "evaluation.ais:pilot_step_sizes": {"chains": 4, "leapfrog": 8, "stride": 4, "initial": 0.2, "rate": 0.15},
    "evaluation.ais:reverse_evidence": {"chains": 8, "leapfrog": 8},
    "evaluation.compare:paired_bootstrap": {"level": 0.95, "resamples": 2000, "seed": 0},
    "evaluation.nll:bootstrap_interval": {"level": 0.95, "resamples": 2000, "seed": 0},
    "evaluation.nll:bootstrap_intervals": {"level": 0.95, "resamples": 2000, "seed": 0},
    "evaluation.nll:estimate_nll": {
        "num_samples": 5000,
        "num_coarse": 100,
        "rows_per_chunk": 20,
        "samples_per_chunk": 100,
        "seed": 0,
        "progress": False,
    },
}
"""By file of a room and name; ``None`` is not listed. The recipe's stand in ``training/test_recipe_by_hand.py``."""


CONSTANTS = {
    "training.captured": {"WARM_UP_STEPS": 3, "READ_EVERY": 50},
    "training.tasks.wave": {"NUM_LEVELS": 256, "PAUSE_SECONDS": 0.25},
    "training.tasks.classes": {"MOST_CLASSIFIED": 10_000},
    "transforms.vector.diagonal": {"BOUND": 2.0},
    "training.tasks.pixel_vae": {"ROWS_SCORED": 500},
    "training.log": {"GRID": {"rows": 4, "columns": 8}},
    "training.loop": {"EPOCH_CHECKPOINT_SECONDS": 2.0},
    "vae.evidence": {"CPU_MEMORY": 67_108_864, "GPU_MEMORY": 8_589_934_592, "PILOT_CHAINS": 4, "PILOT_VISITS": 200},
    "vae.annealing": {"MOMENT_DRAWS": 2000},
    "diagnostics.diagnose": {"MISSED_SHARE": 0.01},
    "diagnostics.calibration": {"LEVEL": 0.99},
    "diagnostics.uniformity": {"NUM_NULL": 2000},
    "diagnostics.verdict": {
        "K_FINITE_VARIANCE": 0.5, "K_FINITE_MEAN": 1.0, "ROW_SHARE": 0.05, "SMALL_SHIFT": 0.1,
        "SMALL_STRETCH": math.log(1.1),
    },
    "diagnostics.chains": {"NOISE": 3.0},
    "diagnostics.elsewhere": {"MISSED_RATIO": 10.0, "MAX_MODES": 12, "MAX_DIM": 200},
    "evaluation.ais": {"TARGET_ACCEPTANCE": 0.65},
}  # fmt: skip
"""Those that the documentation tells, or that the same arguments give the same draws by."""


def defaults(name: str) -> dict[str, object]:
    """Of a function, a method, or a class's constructor, as far as they are not ``None``."""
    module, _, path = name.partition(":")
    found = importlib.import_module(f"vi_flows.{module}")
    for part in path.split("."):
        found = getattr(found, part)
    given = inspect.signature(found).parameters
    return {n: p.default for n, p in given.items() if p.default is not p.empty and p.default is not None}


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults(name: str) -> None:
    found = defaults(name)
    assert {key: found.get(key) for key in DEFAULTS[name]} == DEFAULTS[name]


@pytest.mark.parametrize("module", CONSTANTS)
def test_constants(module: str) -> None:
    found = vars(importlib.import_module(f"vi_flows.{module}"))
    assert {name: found[name] for name in CONSTANTS[module]} == CONSTANTS[module]
