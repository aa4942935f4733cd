"""dcz and its peers side by side, in one run, on real weights: `python -m benchmarks.codecs`, or `make bench-codecs`."""
