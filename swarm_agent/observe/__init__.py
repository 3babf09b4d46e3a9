"""Metrics, health and logs: reads only."""
