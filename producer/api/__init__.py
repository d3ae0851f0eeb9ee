"""The HTTP API: OpenAI's chat completions over the queue, and Turnmill's own turns.

Every call goes the same way: authenticate, parse, hand to a use case of the producer, say
what came of it. No handler knows the broker or a worker.
"""
