//! `rma`.
fn main() {}
