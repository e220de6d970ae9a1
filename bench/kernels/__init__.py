"""The kernels: their cases, whether they are right, how long they take, and what the compiler makes of them."""
