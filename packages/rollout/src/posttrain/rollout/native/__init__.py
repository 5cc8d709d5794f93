"""A forward pass and a sampler in C++, compiled on the machine that runs them; `native_engine.py` generates with it."""
