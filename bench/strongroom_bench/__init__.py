"""Strongroom's benchmarks: what confidentiality costs, beside bare onnxruntime and other servers (docs/performance.md).

A distribution of its own (`strongroom-bench`, the extra `bench`), so that no server's image contains it and no
measurement covers it (docs/adr/0013-the-bench-is-a-distribution-of-its-own.md). It uses the public API and the command
only.
"""

__version__ = "0.1.0"
