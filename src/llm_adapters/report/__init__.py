"""Reports: what a run or study found, in a form to read."""

from llm_adapters.report.run_report import write_report

__all__ = ["write_report"]
