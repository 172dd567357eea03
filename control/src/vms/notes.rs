//! What a long operation has done so far, for whoever asks while it goes on.

use crate::store::{now_ms, rfc3339};
use model::api::auth::LogLine;
use std::sync::{Arc, Mutex, PoisonError};

/// Lines of one operation; it has about ten steps.
const MAX_LINES: usize = 64;

/// The lines so far. Cheap to clone; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Notes(Arc<Mutex<Vec<LogLine>>>);

impl Notes {
    /// Adds a line. Beyond [`MAX_LINES`] it is dropped: the first ones say what was done.
    pub fn add(&self, message: impl Into<String>) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() < MAX_LINES {
            lines.push(LogLine { message: message.into(), timestamp: rfc3339(now_ms()) });
        }
    }

    /// All lines, the oldest first.
    #[must_use]
    pub fn lines(&self) -> Vec<LogLine> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
