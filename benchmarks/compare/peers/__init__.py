"""The peers, one file a family. Each has train(ctx) and predict(ctx): see context.py."""
