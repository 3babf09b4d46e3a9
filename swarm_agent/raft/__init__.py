"""Agreement: a pure Raft core, a log on disk, and the driver that joins them."""
