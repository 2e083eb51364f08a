//! haar: the compute cloud of AWS, real, on a machine you own.
fn main() {}
