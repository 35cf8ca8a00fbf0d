"""The demo: real readings through a real server to workers, a kill in the middle, the ledger.

ledger.py says whether the books balance, process.py is a worker process, show.py the display, and
run.py puts them together. It uses the public API alone, as a user's program would.
"""
