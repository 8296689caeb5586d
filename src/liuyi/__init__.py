"""Liuyi (六艺): from raw text to a running LLM application, in one package with one lineage."""

__version__ = "0.1.0"
