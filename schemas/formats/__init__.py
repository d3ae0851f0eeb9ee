"""The format of a reply: how it is asked for, what is accepted, and whether a reply meets it."""
