"""Record one OpenTelemetry span for each run, as a child of the span of its call.

Without an exporter the API does nothing, at negligible cost. Attributes follow the semantic
conventions for generative AI where these define one. A span never contains a prompt, an answer, a
command or a path below the work folder.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from codex_tools.runs.run import Run

NAME = "invoke_agent codex"

_tracer = trace.get_tracer("mcp-server-codex")


@contextmanager
def span_of(run: Run) -> Generator[None]:
    """Record *run* as a span around the block; the run must have its outcome at the block's end."""
    with _tracer.start_as_current_span(NAME, kind=SpanKind.CLIENT) as span:
        yield
        result = run.outcome
        if result is None or not span.is_recording():
            return
        usage, error = result.usage, result.error
        facts: dict[str, str | int | float | None] = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.provider.name": "openai",
            "gen_ai.agent.name": "codex",
            "gen_ai.agent.version": result.codex_version,
            "gen_ai.conversation.id": result.thread_id,
            "gen_ai.request.model": run.request.model,
            "gen_ai.response.model": result.model,
            "gen_ai.usage.input_tokens": usage.input_tokens if usage else None,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_input_tokens if usage else None,
            "gen_ai.usage.output_tokens": usage.output_tokens if usage else None,
            "codex.run_id": run.run_id,
            "codex.status": result.status,
            "codex.sandbox": result.sandbox,
            "codex.attempts": result.attempts,
            "codex.cost_usd": result.cost_usd,
            "codex.commands": result.command_count,
            "codex.files_changed": len(result.files_changed),
            "error.type": error.kind if error else None,
        }
        span.set_attributes({key: value for key, value in facts.items() if value is not None})
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error.kind))
