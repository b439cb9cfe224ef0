"""Reports, made from what lies in a folder."""

from llm_adapters.report.evaluation_report import write_evaluation_report
from llm_adapters.report.run_report import write_report

__all__ = ["write_evaluation_report", "write_report"]
