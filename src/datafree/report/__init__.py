"""The report: reads a run's folder, imports no torch, writes one self-contained HTML page."""

from datafree.report.page import render, write_report
from datafree.report.summary import summarize, summary_of

__all__ = ["render", "summarize", "summary_of", "write_report"]
