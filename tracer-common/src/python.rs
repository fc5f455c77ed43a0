//! Walking the frames of CPython.
