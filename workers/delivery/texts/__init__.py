"""Replies as platforms show them: Markdown in parts, and in their dialects."""
