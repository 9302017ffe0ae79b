"""Variational inference with normalizing flows on Pyro and PyTorch."""
