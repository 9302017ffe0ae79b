"""What an installation outside of the checkout holds: ``python .ci/installed.py KERNEL`` from an empty folder.

Every module is imported; what fails for a library of an extra is listed, anything else fails.
"""

import importlib
import pkgutil
import sys
from importlib.metadata import distribution
from pathlib import Path

EXTRAS = {"triton", "xarray", "arviz", "tensorboard", "zuko", "normflows"}


def main(kernel: str) -> None:
    """Check the installation of this interpreter; ``kernel`` is the one it should run."""
    import vi_flows
    from vi_flows.kernels import active_kernel

    home = Path(vi_flows.__file__).parent
    assert home.is_relative_to(sys.prefix), f"vi_flows comes from {home}, not from this environment"
    assert (home / "py.typed").exists(), "py.typed is missing"
    assert not (home / "docs").exists(), "the site's sources were installed"
    assert not (Path.cwd() / "vi_flows").exists(), "run this outside of the checkout"
    waiting = {}
    names = [info.name for info in pkgutil.walk_packages([str(home)], "vi_flows.")]
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            library = (error.name or "").partition(".")[0]
            if library not in EXTRAS:
                raise
            waiting[name] = library
    assert active_kernel() == kernel, f"the kernel is {active_kernel()}, not {kernel}"
    files = distribution("vi_flows").files or []
    print(f"{len(names)} modules of {home} import; kernel {kernel}; {len(files)} files; wait for extras: {waiting}")


if __name__ == "__main__":
    main(*sys.argv[1:])
