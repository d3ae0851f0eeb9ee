"""What uvicorn leaves open: limits of connections, files and log lines."""
