"""What messages have beside text, read for models that read text alone."""
