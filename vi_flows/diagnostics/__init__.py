"""Did the approximation work? Importance weights, their tails, and what they say about a guide."""

from vi_flows.diagnostics.calibration import Calibration, expected_coverage, simulation_based_calibration
from vi_flows.diagnostics.diagnose import diagnose
from vi_flows.diagnostics.measures import active_units, invertibility_margin, tail_shape
from vi_flows.diagnostics.report import Diagnosis
from vi_flows.evaluation.psis import PSIS, effective_sample_size, psis

__all__ = [
    "PSIS",
    "Calibration",
    "Diagnosis",
    "active_units",
    "diagnose",
    "effective_sample_size",
    "expected_coverage",
    "invertibility_margin",
    "psis",
    "simulation_based_calibration",
    "tail_shape",
]
