"""The same repetitions on a GPU, by PyTorch (extra ``torch``): a group of them in step, as one batched computation.

device.py (what ``--device`` names), batches.py (samples on their way to the device), encode.py (features -> weighted
rows, labels -> buckets, of all repetitions of the group), loss.py, layers.py and learner.py (the two models: start,
step, score), train.py (epochs, learning rate, early stopping), scorer.py and top_k.py (answers). What comes out is what
the kernels of `machxc.repetition` store, and is scored by either.

Importing the modules here, but device.py, imports torch.
"""
