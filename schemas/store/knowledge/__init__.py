"""Knowledge: collections of documents, their passages, and what turns were shown of them."""
