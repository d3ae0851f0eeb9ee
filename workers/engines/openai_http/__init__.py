"""The engine for servers that speak OpenAI's chat completions."""
