//! Messages and interleaved frames from a byte stream.
