"""Packed weights: the same bytes again, whatever they are; damage is noticed; a run works with them alone."""

from __future__ import annotations

import lzma
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from vi_flows.cli import main
from vi_flows.training import Run, RunError, RunUnusableError, Trainer, VAETrainConfig
from vi_flows.training.checkpoint import CheckpointError, load_tensors, save_tensors
from vi_flows.training.packed import PackedError, content, is_there, pack, packed
from vi_flows.vae import VAEConfig

SMALL = VAETrainConfig(vae=VAEConfig(latent_dims=(2,), hidden_dims=((4,),)), epochs=1, batch_size=400, threads=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "run"
    trainer = Trainer(Run.create(folder, SMALL), progress=False)
    trainer.start()
    trainer.fit()
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """A run whose weights are packed, and nothing else is there of them."""
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    for name in ("best", "last"):
        pack(copy / f"{name}.safetensors", copy)
        (copy / f"{name}.safetensors").unlink()
    return copy


@pytest.mark.parametrize("size", [0, 1, 3, 4, 1001])
def test_any_bytes_come_back(tmp_path, size):
    given = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    path = tmp_path / "a.safetensors"
    path.write_bytes(given)
    assert pack(path, tmp_path) == packed(path) == tmp_path / "a.safetensors.xz"
    path.unlink()
    assert is_there(path)
    assert content(path) == given
    assert lzma.decompress(packed(path).read_bytes()) == given  # as any xz would


def test_weights_take_less_room_than_by_the_usual_settings(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"w": torch.randn(200, 200, generator=torch.Generator().manual_seed(0)) / 14}, {"step": 1})
    size = path.stat().st_size
    assert pack(path, tmp_path).stat().st_size < 0.87 * size
    assert len(lzma.compress(path.read_bytes(), preset=9)) > 0.9 * size


def test_tensors_of_every_type_come_back(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(9, dtype=torch.uint8), "c": torch.zeros(0, 4),
               "d": torch.tensor(3), "e": torch.ones(3).bfloat16(), "f": torch.ones(2).double()}  # fmt: skip
    save_tensors(path, tensors, {"step": 3, "loss": 0.1})
    pack(path, tmp_path)
    path.unlink()
    found, state = load_tensors(path)
    assert state == {"step": 3, "loss": 0.1}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_a_run_with_packed_weights_is_like_any_other(trained, folder):
    plain, run = Run.open(trained), Run.open(folder)
    for which in ("auto", "best", "last"):
        assert run.weights.sha256(which) == plain.weights.sha256(which)
        tasks = plain.build_task(), run.build_task()
        assert plain.load_weights(tasks[0], which) == run.load_weights(tasks[1], which)
        for name, tensor in tasks[0].module.state_dict().items():
            assert torch.equal(tensor, tasks[1].module.state_dict()[name])
    begun = Run.create(folder.parent / "next", replace(SMALL, start_from=folder))
    assert begun.started_from["sha256"] == plain.weights.sha256()
    begun.load_start(begun.build_task())
    for words in (["evaluate", folder, "--num-samples", "2", "--limit", "4", "--quiet"], ["sample", folder]):
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        assert ended.value.code == 0


def test_what_training_writes_comes_before_what_was_packed(trained, folder):
    save_tensors(folder / "best.safetensors", {"a": torch.ones(2)}, {"step": 9})
    assert load_tensors(folder / "best.safetensors")[1] == {"step": 9}
    assert Run.open(folder).weights.sha256("best") != Run.open(trained).weights.sha256("best")


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 0.999])
def test_a_flipped_bit_is_refused_in_a_sentence(folder, share, capsys):
    path = folder / "best.safetensors.xz"
    damaged = bytearray(path.read_bytes())
    damaged[int(len(damaged) * share)] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(PackedError, match=r"^best\.safetensors\.xz: "):
        content(folder / "best.safetensors")
    with pytest.raises(RunUnusableError, match="no usable weights in"):
        Run.open(folder).weights.sha256()
    with pytest.raises(RunUnusableError, match=r"best\.safetensors is damaged .*its last weights are whole"):
        Run.open(folder).load_weights(Run.open(folder).build_task())
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(folder), "--quiet"])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "(best.safetensors.xz: " in line


def test_a_flipped_bit_of_any_byte_is_noticed(tmp_path):
    """Also where the flipped stream is a stream of something else."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 300, dtype=np.uint8).tobytes())
    whole = pack(path, tmp_path).read_bytes()
    path.unlink()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        packed(path).write_bytes(damaged)
        with pytest.raises(PackedError):
            content(path)


def test_a_file_that_was_cut_is_refused(folder):
    path = folder / "best.safetensors.xz"
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="is damaged"):
            load_tensors(folder / "best.safetensors")


def test_there_is_no_such_choice(folder):
    with pytest.raises(RunError, match="choose auto, best or last"):
        Run.open(folder).weights.path("first")
