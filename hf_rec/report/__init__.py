"""Tables and figures from the files of measured runs. Nothing here loads a model."""

from hf_rec.report.report import write_report


__all__ = ["write_report"]
