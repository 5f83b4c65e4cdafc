"""From soft values to pixels and run-length codes."""
