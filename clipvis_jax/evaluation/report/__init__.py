"""The report of an evaluation: one page that opens in any browser, without a network."""

from clipvis_jax.evaluation.report.page import write_report

__all__ = ["write_report"]
