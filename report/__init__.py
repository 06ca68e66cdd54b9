"""Rankings to look at: contact sheets and pages."""

from .contact_sheet import contact_sheet, format_score
from .page import write_report
from .rows import Row, Scores

__all__ = ["Row", "Scores", "contact_sheet", "format_score", "write_report"]
