"""The life of one attempt: claim, prompt, generate, stream, settle."""
