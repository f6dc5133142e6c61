"""One repetition: a classifier over B buckets that knows nothing of its siblings.

encode.py (features -> weighted rows), targets.py (labels -> buckets), linear.py and network.py (the two models:
start, train, score), stored.py (how a linear one's weights are stored), loop.py (epochs, learning rate, early
stopping), chunks.py (how many samples at a time), arithmetic.py, bfloat.py and random.py (what they share).
"""
