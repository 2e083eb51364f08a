//! The records that services write and the node reconciles.
