//! The HTTPS front.
