"""Search connectors: what a bot's collection does not answer is looked for elsewhere."""
