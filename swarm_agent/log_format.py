"""Logging: one JSON object a line for the journal, plain lines for people."""

from __future__ import annotations

import json
import logging
import sys

LOG_LEVELS = ("debug", "info", "warning", "error")
_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_FIELDS = ("node", "task", "service", "cause")


class JournalFormatter(logging.Formatter):
    """``<priority>{json}``: systemd reads the prefix, people and tools the rest."""

    def format(self, record: logging.LogRecord) -> str:
        out: dict[str, object] = {
            "msg": record.getMessage(),
            "logger": record.name,
            "level": record.levelname.lower(),
        }
        out.update({f: getattr(record, f) for f in _FIELDS if hasattr(record, f)})
        if record.exc_info:
            out["exception"] = self.formatException(record.exc_info)
        return f"<{_PRIORITY.get(record.levelno, 6)}>{json.dumps(out, default=str)}"


class TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        extra = " ".join(f"{f}={getattr(record, f)}" for f in _FIELDS if hasattr(record, f))
        return f"{text} [{extra}]" if extra else text


def set_up_logging(level: str, style: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JournalFormatter() if style == "journal" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("swarm_agent").setLevel(level.upper())
