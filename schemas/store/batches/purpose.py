"""Batches whose replies nobody asked for: they measure bots, or read what was said.

Their turns are no user's: no sample is drawn from them, and no model learns from them.
"""

#: The purpose of batches that answer stored turns again, or ask a judge about such replies.
MEASURING = "measuring"
#: That of batches that propose facts about users (`producer/memory/extraction.py`).
EXTRACTING = "extracting"

#: A condition on the turn `t`.
IS_OF_USERS = """
NOT EXISTS (SELECT FROM batches own WHERE own.id = t.batch_id AND own.purpose IS NOT NULL)
"""
