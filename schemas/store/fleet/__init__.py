"""Who works on this database: its deployment, the releases in use, the workers that live."""
