"""The Celery side: the app, its task, its drain, and the process around them."""
