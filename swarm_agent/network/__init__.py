"""Overlay, virtual IPs, ingress, DNS, and netd, the process that serves the engine's network plugin."""
