//! Disks of machines: copy-on-write overlays and empty volumes.
