"""`python -m turnmill.producer.cli`: how the embedded stack starts its processes."""

from turnmill.producer.cli.entry import main

main()
