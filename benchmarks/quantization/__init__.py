"""Measurements of the quantization methods."""
