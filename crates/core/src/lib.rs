//! What every service shares: ids, ARNs, tags, filters, pagination, idempotency and the reconcile loop.
