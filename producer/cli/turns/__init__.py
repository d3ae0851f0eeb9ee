"""Commands about turns."""
