"""Check the caller's output schema and convert it for OpenAI's strict mode."""
