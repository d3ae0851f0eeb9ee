"""Tables and statements of channels and deliveries."""
