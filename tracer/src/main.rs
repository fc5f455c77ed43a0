//! memtrace.
fn main(){}
