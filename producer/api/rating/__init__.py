"""The raters' page: what people rate in a browser."""
