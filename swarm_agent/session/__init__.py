"""Traffic between daemons: wire format, manager side, node side."""
