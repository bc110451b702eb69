"""Structured logs: one line an event, text for people or JSON for machines, with request ids."""

import json
import logging
import sys
from contextvars import ContextVar
from typing import Any

from app.settings import LogFormat

LOGGER_NAME = "likeness"
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
# The address of the client whose request is being answered.
client_address: ContextVar[str | None] = ContextVar("client_address", default=None)


def log(level: int, event: str, error: Exception | None = None, **fields: Any) -> None:
    """Log an event with fields, and the traceback of `error`.

    Never pass photos, embeddings or person ids.
    """
    logger = logging.getLogger(LOGGER_NAME)
    if logger.isEnabledFor(level):
        logger.log(level, event, exc_info=error, extra={"fields": fields})


def set_up_logs(log_format: LogFormat, level: str, *, with_process: bool = False) -> None:
    """Send the service's log to standard error; the CLI calls this once. Where several processes
    write to one log, each line has the process's number."""
    handler = logging.StreamHandler(sys.stderr)
    if with_process:
        handler.addFilter(_add_process)
    handler.setFormatter(JsonFormatter() if log_format is LogFormat.JSON else TextFormatter())
    logger = logging.getLogger(LOGGER_NAME)
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


def _add_process(record: logging.LogRecord) -> bool:
    record.fields = {"pid": record.process, **getattr(record, "fields", {})}
    return True


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = dict(getattr(record, "fields", {}))
    context = {"request_id": request_id.get(), "client": client_address.get()}
    return {**{name: value for name, value in context.items() if value}, **fields}


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """`12:00:00 info event key=value`."""

    def format(self, record: logging.LogRecord) -> str:
        pairs = "".join(f" {key}={value}" for key, value in _fields(record).items())
        time = self.formatTime(record, "%H:%M:%S")
        line = f"{time} {record.levelname.lower():7} {record.getMessage()}{pairs}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
