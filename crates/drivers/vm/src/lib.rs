//! Virtual machines: QEMU processes driven over QMP.
