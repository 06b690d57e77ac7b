"""The embedded sample: a small teacher, its base, and a small multilingual data set."""
