"""From text to token hashes: text.py (the n-grams), unicode.py (what a word is), kernels.py (the hash)."""
