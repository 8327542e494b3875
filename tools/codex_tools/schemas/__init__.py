"""The caller's output schema, and OpenAI's strict dialect of it."""
