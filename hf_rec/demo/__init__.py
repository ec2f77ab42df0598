"""
The whole story on generated data: from a log and a catalog to trained recommenders, their measure and a report.
"""

from hf_rec.demo.run import run_demo


__all__ = ["run_demo"]
