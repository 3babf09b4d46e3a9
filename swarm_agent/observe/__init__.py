"""Metrics and health of the whole daemon, over HTTP. Reads only, so it stands above every room it reports on."""
