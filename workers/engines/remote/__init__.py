"""What engines share that ask servers: a pool of replicas, HTTP, server-sent events."""
