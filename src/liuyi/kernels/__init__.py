"""Native kernels for the CPU: a small C++ library behind a plain C interface, and its Python side."""
