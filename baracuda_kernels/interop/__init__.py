"""One adapter for each framework. Importing an adapter imports its framework and no other, but
``transformers`` needs PyTorch too."""
