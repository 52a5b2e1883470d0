"""The peers, a folder each (see `strongroom_bench.peer`)."""
