//! Where the system's files are: `/`, or below a folder where the agent is tried outside a VM.

use std::path::{Path, PathBuf};

/// The root of the files that describe the system.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Root {
    /// That of the system itself.
    #[must_use]
    pub fn system() -> Self {
        Self("/".into())
    }

    /// A folder in its place.
    #[must_use]
    pub fn below(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// A file, by its absolute path in the system.
    #[must_use]
    pub fn at(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// Whether it is the system itself.
    #[must_use]
    pub fn is_system(&self) -> bool {
        self.0 == Path::new("/")
    }
}
