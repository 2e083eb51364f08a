//! AWS STS, and the principals that sign requests.
