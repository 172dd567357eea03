//! The decider: API, state, plans, and the views that it publishes.
