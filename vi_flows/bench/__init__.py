"""Speed as ratios: what a flow costs beside what it is compared with, measured in one process on one thread."""

from vi_flows.bench.measure import Measurement, compare
from vi_flows.bench.rows import GOALS, Goal, Row

__all__ = ["GOALS", "Goal", "Measurement", "Row", "compare"]
