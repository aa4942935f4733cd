"""Measurements, one file a question: each checks its result before it times it, and compares within one run."""
