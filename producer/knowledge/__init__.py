"""Knowledge: what bots are shown of their owners' documents."""
