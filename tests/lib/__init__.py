"""Shipped test doubles: virtual clock, fake network, disk and engine, whole clusters in one process."""
