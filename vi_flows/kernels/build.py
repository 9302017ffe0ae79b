"""How the compiled kernel is built: by pip at installation, or in place by ``python -m vi_flows.kernels.build``.

setuptools loads this file on its own, before PyTorch is there, so it imports nothing of this package.
"""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, CompileError, ExecError, PlatformError

__all__ = ["BuildKernel", "main"]

_FLAGS = {
    # Without these two, comparisons and square roots keep loops from being vectorised; no result depends on them.
    "unix": ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden"],
    "msvc": ["/O2", "/fp:contract"],
}
_OPENMP = {"unix": ["-fopenmp"], "msvc": ["/openmp"]}


class BuildKernel(build_ext):
    """Builds with OpenMP where the compiler has it, without where it has not, and lets an install go on without any."""

    def build_extension(self, ext: Extension) -> None:
        """Try the compiler's flags for speed and threads, then fewer."""
        kind = "msvc" if self.compiler.compiler_type == "msvc" else "unix"
        compile_args, link_args = list(ext.extra_compile_args), list(ext.extra_link_args)
        openmp = _OPENMP[kind]
        attempts = [(_FLAGS[kind] + openmp, openmp if kind == "unix" else []), (_FLAGS[kind], []), ([], [])]
        for number, (flags, linked) in enumerate(attempts):
            ext.extra_compile_args, ext.extra_link_args = compile_args + flags, link_args + linked
            try:
                super().build_extension(ext)
                return
            except (CCompilerError, CompileError, ExecError, PlatformError):
                if number + 1 == len(attempts):
                    raise


def main() -> int:
    """Build the kernel beside its sources, for a checkout that isn't installed."""
    root = Path(__file__).parents[2]
    source = Path(__file__).with_name("csrc") / "conv_flow.c"
    extension = Extension("vi_flows.kernels._conv_flow", [str(source.relative_to(root))], depends=_headers(source))
    command = BuildKernel(Distribution({"name": "vi_flows", "ext_modules": [extension], "packages": ["vi_flows"]}))
    command.inplace, command.build_temp = True, str(root / "build")
    command.ensure_finalized()
    command.run()
    return 0


def _headers(source: Path) -> list[str]:
    return [str(header) for header in source.parent.glob("*.h")]


if __name__ == "__main__":
    sys.exit(main())
