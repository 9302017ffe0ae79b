"""Where a guide starts: a Gaussian found along quasi-Newton paths and refined by natural gradients."""
