"""`turnmill chaos`: break everything, and count what was lost."""
