//! Kernel programs of the packet path.
fn main() {}
