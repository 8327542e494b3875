"""Export OpenTelemetry traces. Off until the environment names an exporter.

OTEL_EXPORTER_OTLP_ENDPOINT (or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) sends the
traces to a collector. OTEL_TRACES_EXPORTER=console writes them to stderr. The
extra `otel` installs the OpenTelemetry SDK and the exporter. The MCP SDK's own
spans, one for each request, are exported too.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

FLUSH_WITHIN_S = 0.2
"""Seconds that the server waits for the export of its last spans when it ends.

Claude Code kills the server after 0.5 s.
"""


def start_traces(environ: Mapping[str, str]) -> Callable[[], None]:
    """Start the export of spans if *environ* names an exporter.

    Returns:
        A function to call when the server ends; it exports the spans that are left.
    """
    wanted = environ.get("OTEL_TRACES_EXPORTER") or (
        "otlp" if any(environ.get(name) for name in _ENDPOINTS) else "none"
    )
    if wanted == "none" or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return _nothing
    if wanted not in ("otlp", "console"):
        logger.warning("OTEL_TRACES_EXPORTER=%s is unknown: set otlp, console or none", wanted)
        return _nothing
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

        if wanted == "console":
            exporter = ConsoleSpanExporter(out=sys.stderr)
        else:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter()
    except ImportError as error:
        logger.warning(
            "no traces: module %s is missing; install mcp-server-codex[otel]", error.name
        )
        return _nothing
    named = environ.get("OTEL_SERVICE_NAME") or "mcp-server-codex"
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: named}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)

    def end() -> None:
        # A collector that does not answer must not keep the server process alive.
        last = threading.Thread(target=provider.shutdown, daemon=True)
        last.start()
        last.join(FLUSH_WITHIN_S)

    return end


def _nothing() -> None:
    pass
