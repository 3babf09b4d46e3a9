"""The replicated tables: records, indexes, checked writes, watches, overlay views. Pure."""
