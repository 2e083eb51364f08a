//! The AWS wire: protocols, signatures, errors and dispatch, driven by the API models.
