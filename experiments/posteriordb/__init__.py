"""posteriordb's posteriors as Pyro programs, and how guides and NUTS fare on them by their default settings."""
