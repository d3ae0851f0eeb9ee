"""WeCom: encrypted messages to an application of an enterprise."""
