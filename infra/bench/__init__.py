"""`turnmill bench`: what the system, engines and compression do, as ratios within one run."""
