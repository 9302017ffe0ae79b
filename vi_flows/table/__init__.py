"""The unattended runner of tables: the list of jobs, who works on what, and how far it is; and the VAE tables' rows."""

from vi_flows.table.job import Computer, Job, OutOfTimeError, Workplace, part_of
from vi_flows.table.plan import Selection
from vi_flows.table.rows import RECIPES, Row, matching_rows, table_rows
from vi_flows.table.runner import Outcome, Runner, work_through
from vi_flows.table.status import JobStatus, status_of, status_table
from vi_flows.table.vae_job import Machine, VAEJob

__all__ = [
    "RECIPES", "Computer", "Job", "JobStatus", "Machine", "OutOfTimeError", "Outcome", "Row", "Runner", "Selection",
    "VAEJob", "Workplace", "matching_rows", "part_of", "status_of", "status_table", "table_rows", "work_through",
]  # fmt: skip
