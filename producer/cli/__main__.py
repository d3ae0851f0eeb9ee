"""`python -m turnmill.producer.cli`: how the embedded stack starts its processes."""

from turnmill.producer.cli.app import main

main()
