"""Flows fitted to two-dimensional energies by reverse KL."""

from vi_flows.fit2d.fit import Fit2D, Fit2DResult, fit_flow_2d, flow_log_density, make_flow_2d, train_flow_2d

__all__ = ["Fit2D", "Fit2DResult", "fit_flow_2d", "flow_log_density", "make_flow_2d", "train_flow_2d"]
