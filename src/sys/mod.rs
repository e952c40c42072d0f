//! Safe wrappers of system calls. The only home of `unsafe`; knows nothing of units.
