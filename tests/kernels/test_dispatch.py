"""The choice of a kernel, its errors, and installs without a compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.kernels.stacks import HAVE_C, draw, make_spec, needs_c
from vi_flows.kernels import KERNELS, active_kernel, conv_flow_forward, dispatch, kernel_reason, native, ops, use_kernel
from vi_flows.kernels.operands import Operands

ROOT = Path(__file__).parents[2]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


@pytest.fixture
def undecided(monkeypatch):
    monkeypatch.setattr(dispatch, "_chosen", None)
    monkeypatch.delenv("VI_FLOWS_KERNEL", raising=False)


def test_the_fastest_kernel_is_the_default(undecided):
    assert active_kernel() == ("c" if HAVE_C else "torch")
    assert kernel_reason()


@pytest.mark.parametrize("name", KERNELS)
def test_the_variable_chooses(undecided, monkeypatch, name):
    monkeypatch.setenv("VI_FLOWS_KERNEL", name)
    if name == "c" and not HAVE_C:
        with pytest.raises(RuntimeError, match="not available"):
            active_kernel()
    else:
        assert active_kernel() == name
        assert name in kernel_reason()


def test_errors_name_the_choices(undecided, monkeypatch):
    monkeypatch.setenv("VI_FLOWS_KERNEL", "fortran")
    with pytest.raises(ValueError, match=r"VI_FLOWS_KERNEL.*'fortran'.*c, torch, reference"):
        active_kernel()
    with pytest.raises(ValueError, match="use_kernel"), use_kernel("gpu"):
        pass


def test_without_the_extension(undecided, monkeypatch):
    monkeypatch.setattr(native, "load", lambda: "was not built")
    assert active_kernel() == "torch"
    assert "was not built" in kernel_reason()
    spec = make_spec(3, 2, (1,))
    assert conv_flow_forward(*draw(spec, (5,)), spec)[0].shape == (5, 3)
    monkeypatch.setattr(dispatch, "_chosen", None)
    monkeypatch.setenv("VI_FLOWS_KERNEL", "c")
    with pytest.raises(RuntimeError, match="was not built"):
        active_kernel()


@pytest.mark.parametrize("served", [False, True])
def test_cuda_tensors_take_the_triton_kernel_where_it_serves(monkeypatch, served):
    """On stand-ins: which implementation is chosen, not what it computes."""
    asked = []
    monkeypatch.setattr(ops, "triton_serves", lambda spec, device: asked.append((spec, device.type)) or served)
    spec = make_spec(3, 2, (1,), activation="tanh")
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        operands = Operands(*(torch.empty(t.shape, dtype=t.dtype, device="cuda") for t in draw(spec, (5,))))
    assert dispatch._served(operands, spec) == served
    assert asked == [(spec, "cuda")]
    assert not dispatch._served(operands._replace(x=draw(spec, (5,)).x), spec)


def test_use_kernel_is_undone(undecided):
    before = active_kernel()
    with use_kernel("reference"):
        assert active_kernel() == "reference"
    assert active_kernel() == before
    with pytest.raises(KeyError), use_kernel("reference"):
        raise KeyError
    assert active_kernel() == before


def test_import_reads_no_variable_and_loads_nothing():
    done = run_python("import vi_flows.kernels as k; print(k.dispatch._chosen)", VI_FLOWS_KERNEL="nonsense")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "None"


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    ("place", "shape"), [(0, (5, 4)), (1, (3, 3)), (1, (4, 2)), (2, (4, 3)), (2, (3, 2)), (3, (4, 2)), (3, (1, 1))]
)
def test_shapes_that_do_not_fit(name, place, shape):
    if name == "c" and not HAVE_C:
        pytest.skip("the compiled kernel was not built")
    spec = make_spec(3, 2, (1, 2))
    operands = list(draw(spec, (5,)))
    operands[place] = torch.zeros(shape, dtype=torch.float64)
    with use_kernel(name), pytest.raises(ValueError, match="stack of 4 layers with 2 taps on 3 dimensions"):
        conv_flow_forward(*operands, spec)


@needs_c
def test_a_forked_child_can_use_the_kernel():
    """An OpenMP runtime's threads are not there after a fork: the child must not wait for them."""
    code = """
import os, torch
from tests.kernels.stacks import draw, make_spec
from vi_flows.kernels import conv_flow_forward
torch.set_num_threads(2)
spec = make_spec(50, 5, (1, 2, 4, 8, 16, 32), 4)
operands = draw(spec, (500,), scale=0.1)
expected = conv_flow_forward(*operands, spec)[0]
child = os.fork()
if child == 0:
    os._exit(0 if torch.allclose(conv_flow_forward(*operands, spec)[0], expected) else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert done.stdout.strip() == "0", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["cc", "/nonexistent/cc"])
def test_install_with_and_without_a_compiler(tmp_path, compiler):
    """pip succeeds either way, and the tests of the contract pass on what it installed."""
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    subprocess.run(["git", "worktree", "list"], cwd=ROOT, check=True, capture_output=True)
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    site = tmp_path / "site"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(site),
        ".",
    ]
    environment = {**os.environ, "CC": compiler, "CXX": compiler, "PYTHONPATH": str(site)}
    environment.pop("VI_FLOWS_KERNEL", None)
    subprocess.run(pip, cwd=source, env=environment, check=True, capture_output=True)
    code = "import vi_flows.kernels as k; print(k.__file__); print(k.active_kernel())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    path, kernel = done.stdout.split()
    assert path.startswith(str(site))
    assert kernel == ("c" if compiler == "cc" else "torch")
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(source / "tests" / "transforms")]
    (source / "vi_flows").rename(source / "not_this_one")
    subprocess.run(tests, cwd=source, env=environment, check=True)


def test_the_import_leaves_the_compiler_alone():
    run = run_python("import sys, vi_flows; print('torch._dynamo' in sys.modules)")
    assert run.stdout.strip() == "False", run.stderr


def test_the_choice_of_triton_is_a_constant_to_the_compiler():
    def marked():
        pass

    torch.compiler.assume_constant_result(marked)
    assert vars(marked).items() <= vars(ops.triton_serves).items()
