//! The agent of one machine: reconcilers from record to driver, and adoption after a restart.
