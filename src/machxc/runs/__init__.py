"""A run: what was asked, where it keeps what it has done, the work on one repetition, and how far all of them are.

asked.py (what was asked, and whether it is the same again), folder.py (the run folder) and remote.py (one in an object
store), work.py (train one repetition of a run, anywhere), status.py (what is done, by whom), growing.py (repetitions
added to a model). `machxc.run` puts them together.
"""
