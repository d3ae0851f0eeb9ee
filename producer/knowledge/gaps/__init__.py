"""Gaps: questions that a collection did not answer, and the answers that close them."""
