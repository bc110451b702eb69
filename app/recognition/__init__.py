"""Enroll, verify and identify: decoded requests in, typed outcomes out. Knows nothing of HTTP.

The functions are coroutines that do next to nothing but wait: photos are analysed on the pool of
the networks, the database and the index are used on the pools of the scheduler that the functions
name. Only a few embeddings that are enrolled are checked on the event loop (`MOST_ON_THE_LOOP`).
"""
