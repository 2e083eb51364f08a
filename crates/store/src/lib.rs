//! Revisioned records, transactions and watches behind one trait, with an in-memory copy for reads.
