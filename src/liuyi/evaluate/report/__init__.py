"""The effect report: what every stage of a path has to show, as one page and in the terminal.

report = build_report(artifacts, title="quickstart")
write_report(report, folder)             # report.html, report.json
print_report(report, console)
"""

from liuyi.evaluate.report.gather import Report, Section, build_report, read_report
from liuyi.evaluate.report.page import page, write_report
from liuyi.evaluate.report.terminal import print_report

__all__ = ["Report", "Section", "build_report", "page", "print_report", "read_report", "write_report"]
