"""``python -m vi_flows``, and so ``torchrun --nproc-per-node N -m vi_flows train …``: the ``vi-flows`` command."""

from vi_flows.cli import main

if __name__ == "__main__":
    main()
