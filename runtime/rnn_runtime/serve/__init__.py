"""A web service for one model: requests become batches, and predictions become answers.

Needs the extra `serve`. Nothing else imports it; the command is `rnn-serve`.
"""
