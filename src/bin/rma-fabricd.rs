//! `rma-fabricd`.
fn main() {}
