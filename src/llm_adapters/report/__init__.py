"""Reports, made from what lies in a folder."""

from llm_adapters.report.evaluation_report import write_evaluation_report
from llm_adapters.report.run_report import write_report
from llm_adapters.report.study_report import write_run_page, write_study_report

__all__ = ["write_evaluation_report", "write_report", "write_run_page", "write_study_report"]
