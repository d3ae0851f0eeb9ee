"""What Turnmill is compared with, each run as its own users would."""
