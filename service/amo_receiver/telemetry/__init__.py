"""Traces. The three spans that every delivery costs are written as bytes (``spans``, ``tracing``), all others by the SDK (``setup``)."""
