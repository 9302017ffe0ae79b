"""Steps that can be recorded: no number is read back within them, and static buffers change nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.test_stacked import assert_close
from vi_flows.flows import MAF, ConvFlow, RealNVP
from vi_flows.objectives import elbo_bound, iwae_bound
from vi_flows.training import ImageTrainConfig, Run, Trainer, TrainingDivergedError, VAETrainConfig
from vi_flows.training.captured import CapturedTrainer, trainer_for
from vi_flows.training.checkpoint import load_tensors
from vi_flows.vae import VAEConfig, build_vae

TINY = VAEConfig(latent_dims=(4,), hidden_dims=((16,),))
FLOW = ConvFlow(2, kernel_size=3)
GLOBAL, AMORTIZED = replace(TINY, flow=FLOW, amortized=False), replace(TINY, flow=FLOW)
PRIOR = replace(AMORTIZED, prior=MAF(2, (16,)), dropout=0.1)
CONFIG = VAETrainConfig(vae=TINY, epochs=2, batch_size=200, threads=1, checkpoint_seconds=1e9)
KINDS = {
    "plain": (TINY, elbo_bound, 1),
    "global": (replace(GLOBAL, batch_norm=True), elbo_bound, 1),
    "amortised": (replace(TINY, flow=replace(FLOW, activation="tanh")), iwae_bound, 5),
    "g2": (VAEConfig("g2", (3, 4), ((8,), (16,)), flow=ConvFlow(kernel_size=2), amortized=False), iwae_bound, 5),
    "prior": (replace(TINY, flow=replace(FLOW, activation="tanh"), prior=MAF(2, (16,))), iwae_bound, 5),
    "coupling prior": (replace(TINY, prior=RealNVP(2, (16,)), encoder_dims=((20,),)), elbo_bound, 1),
}


class NothingRead(TorchDispatchMode):
    """Fails where a tensor's number goes to the host, for which a GPU would have to be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "item")), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_reads_nothing_back(kind):
    config, bound, particles = KINDS[kind]
    vae = build_vae(config, 12)
    x = torch.bernoulli(torch.rand(7, 12))
    optimizer = torch.optim.Adam(vae.parameters(), lr=torch.tensor(1e-3), fused=True, capturable=True)
    for _ in range(2):
        optimizer.zero_grad()
        with NothingRead():
            loss = -bound(vae.log_weight_terms(x, particles)).mean()
            loss.backward()
            torch.nn.utils.get_total_norm([p.grad for p in vae.parameters()])
        optimizer.step()  # on the CPU the update itself reads its step counter
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NothingRead():
        loss.item()


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_can_be_traced(kind):
    """The loss and all gradients as one graph, with the flow as one operator forward and one backward a latent."""
    config, bound, particles = KINDS[kind]
    vae = build_vae(config, 12).train()
    x = torch.bernoulli(torch.rand(7, 12))

    def loss(parameters, buffers, x):
        terms = functional_call(_Terms(vae, particles), {**parameters, **buffers}, (x,))
        return -bound(terms).mean()

    parameters = {f"vae.{n}": p.detach() for n, p in vae.named_parameters()}
    buffers = {f"vae.{n}": b for n, b in vae.named_buffers()}

    def step(parameters, buffers, x):
        leaves = {n: p.requires_grad_() for n, p in parameters.items()}
        value = loss(leaves, buffers, x)
        return value, torch.autograd.grad(value, list(leaves.values()))

    graph = make_fx(step, tracing_mode="fake")(parameters, buffers, x)
    own = [str(node.target) for node in graph.graph.nodes if "vi_flows" in str(node.target)]
    latents = 0 if config.flow is None else len(vae.model.latent_names)
    assert sum("backward" in name for name in own) == latents
    assert len(own) == 2 * latents


class _Terms(torch.nn.Module):
    def __init__(self, vae, particles):
        super().__init__()
        self.vae, self.particles = vae, particles

    def forward(self, x):
        return self.vae.log_weight_terms(x, self.particles)


def test_static_buffers_change_nothing(tmp_path):
    """KL warm-up, short last minibatches, averages, clipping, growing particles, an interruption: as the ordinary."""
    config = replace(CONFIG, kl_warmup_epochs=0.3, clip_norm=20.0, ema_decay=0.9, epochs=3)
    config = replace(config, objective="dreg", particles_schedule=(1, 2, 4))
    runs = [
        Run.create(tmp_path / name, replace(config, cuda_graph=name == "static")) for name in ("static", "ordinary")
    ]
    trainer = trainer_for(runs[0], progress=False)
    assert isinstance(trainer, CapturedTrainer)
    calls = []
    inner = trainer._whole_step
    trainer._whole_step = lambda *which: (calls.append((trainer.state["step"], *which)), inner(*which))
    trainer.start()
    trainer.fit(until=10)
    # of seven minibatches an epoch the last is shorter; the first three are KL warm-up
    assert [step for step, *_ in calls] == [0, 1, 2, 3, 4, 5, 7, 8, 9]
    assert [warm for _, warm, _ in calls] == [False] * 3 + [True] * 6
    assert [particles for *_, particles in calls] == [1] * 6 + [2] * 3
    again = trainer_for(Run.open(runs[0].folder), progress=False)
    again.resume()
    again.fit()
    ordinary = trainer_for(runs[1], progress=False)
    assert type(ordinary) is Trainer
    ordinary.start()
    ordinary.fit()
    assert_close(*runs)


def test_what_warms_up_is_put_back(tmp_path, monkeypatch):
    """The snapshot covers weights, running statistics, averages, moments and counters."""
    config = replace(CONFIG, vae=replace(GLOBAL, batch_norm=True), ema_decay=0.9)
    trainer = CapturedTrainer(Run.create(tmp_path / "run", config), progress=False)
    trainer.start()
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: torch.set_rng_state(state))
    for trained in (False, True):
        if trained:
            trainer.fit(until=3)
            trainer._unread = 0
        before = [t.clone() for t in trainer._tensors()]
        generator = torch.get_rng_state()
        snapshot = trainer._snapshot()
        next(iter(trainer.batches()))
        trainer._average_weights = torch.full((99,), 0.5)
        trainer.module.train()
        trainer._whole_step(True, 1)
        assert not torch.equal(torch.get_rng_state(), generator)
        trainer._put_back(snapshot, trained)
        assert torch.equal(torch.get_rng_state(), generator)
        after = trainer._tensors()
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=False))
        assert trained == (len(after) == len(before))
        assert not any(t.any() for t in after[len(before) :])


def test_a_bad_step_stops_all_updates(tmp_path):
    trainer = CapturedTrainer(Run.create(tmp_path / "run", CONFIG), progress=False)
    trainer.start()
    trainer.fit(until=2)
    batches = trainer.batches()
    with torch.no_grad():
        trainer.module.model.logits.weight[0, 0] = torch.nan
    before = [p.detach().nan_to_num(0.5) for p in trainer.parameters]
    trainer.take_step(next(batches))
    trainer.take_step(next(batches))
    for old, new in zip(before, trainer.parameters, strict=True):
        assert torch.equal(old, new.nan_to_num(0.5))
    with pytest.raises(TrainingDivergedError, match=r"step 2 .*bound nan"):
        trainer.save()
    assert load_tensors(tmp_path / "run" / "checkpoint.safetensors")[1]["step"] == 2


def test_divergence_stops_the_training(tmp_path):
    trainer = CapturedTrainer(Run.create(tmp_path / "run", CONFIG), progress=False)
    trainer.start()
    trainer.fit(until=4)
    with torch.no_grad():
        trainer.module.model.logits.weight[0, 0] = torch.nan
    with pytest.raises(TrainingDivergedError, match="step 4 "):
        trainer.fit()


def test_only_vaes():
    with pytest.raises(TypeError, match="cuda_graph"):
        ImageTrainConfig(cuda_graph=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("vae", [TINY, GLOBAL, AMORTIZED, PRIOR], ids=lambda vae: vae.name)
def test_replayed_steps_are_the_eager_ones(tmp_path, vae):
    config = replace(CONFIG, vae=vae, device="cuda")
    config = replace(config, kl_warmup_epochs=0.3, ema_decay=0.9, clip_norm=20.0)
    if vae.flow is None:
        config = replace(config, objective="dreg", particles_schedule=(1, 3))
    runs = [Run.create(tmp_path / name, replace(config, cuda_graph=name == "graph")) for name in ("graph", "eager")]
    for run in runs:
        trainer = trainer_for(run, progress=False)
        trainer.start()
        trainer.fit()
    assert_close(*runs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_resumed_recording_repeats_the_run_to_the_bit(tmp_path):
    config = replace(CONFIG, vae=replace(AMORTIZED, batch_norm=True), device="cuda", cuda_graph=True)
    whole, parts = (Run.create(tmp_path / name, config) for name in ("whole", "parts"))
    trainer = trainer_for(whole, progress=False)
    trainer.start()
    trainer.fit()
    trainer = trainer_for(parts, progress=False)
    trainer.start()
    trainer.fit(until=9)
    again = trainer_for(Run.open(parts.folder), progress=False)
    again.resume()
    again.fit()
    mine, theirs = (load_tensors(run.folder / "last.safetensors")[0] for run in (whole, parts))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_replayed_bad_step_stops_all_updates(tmp_path):
    config = replace(CONFIG, device="cuda", cuda_graph=True)
    trainer = trainer_for(Run.create(tmp_path / "run", config), progress=False)
    trainer.start()
    trainer.fit(until=3)
    with torch.no_grad():
        trainer.module.model.logits.weight[0, 0] = torch.nan
    before = [p.detach().nan_to_num(0.5) for p in trainer.parameters]
    with pytest.raises(TrainingDivergedError, match="step 3 "):
        trainer.fit()
    for old, new in zip(before, trainer.parameters, strict=True):
        assert torch.equal(old, new.nan_to_num(0.5))
