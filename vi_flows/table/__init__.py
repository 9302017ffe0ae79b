"""The unattended runner of the VAE tables: the list of rows, who works on what, and how far it is."""

from vi_flows.table.plan import Job, Selection, Workplace
from vi_flows.table.rows import RECIPES, Row, matching_rows, table_rows
from vi_flows.table.runner import Outcome, Runner
from vi_flows.table.status import JobStatus, status_of, status_table
from vi_flows.table.work import Machine

__all__ = [
    "RECIPES", "Job", "JobStatus", "Machine", "Outcome", "Row", "Runner", "Selection", "Workplace", "matching_rows",
    "status_of", "status_table", "table_rows",
]  # fmt: skip
