//! What a VM's process is handed, because it can open nothing of the host's by itself.

use super::control::MachinePlan;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why something cannot be handed.
#[derive(Debug, Error)]
pub enum HandError {
    /// A file of the image.
    #[error("cannot open the image's {path}")]
    Image {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The VM's folder.
    #[error("cannot open the VM's folder {path}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Descriptors that ride with a plan.
#[derive(Debug)]
pub struct Handed {
    /// The VM's folder, where the process works.
    pub folder: OwnedFd,
    /// See [`MachinePlan::kernel`].
    pub kernel: File,
    /// See [`MachinePlan::initramfs`].
    pub initramfs: File,
    /// See [`MachinePlan::rootfs`].
    pub base: File,
    /// The queues of the NIC's TAP; none without a NIC.
    pub taps: Vec<OwnedFd>,
}

impl Handed {
    /// Opens what a plan names.
    ///
    /// # Errors
    /// See [`HandError`].
    pub fn open(plan: &MachinePlan, taps: Vec<OwnedFd>) -> Result<Self, HandError> {
        Ok(Self {
            folder: open_folder(&plan.folder)?,
            kernel: open_image(&plan.kernel)?,
            initramfs: open_image(&plan.initramfs)?,
            base: open_image(&plan.rootfs)?,
            taps,
        })
    }

    /// In the order in which they ride.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let files = [self.folder.as_fd(), self.kernel.as_fd(), self.initramfs.as_fd(), self.base.as_fd()];
        files.into_iter().chain(self.taps.iter().map(AsFd::as_fd)).collect()
    }

    /// Out of what rode with a plan; `None` when there is too little.
    pub fn from_descriptors(descriptors: impl IntoIterator<Item = OwnedFd>) -> Option<Self> {
        let mut descriptors = descriptors.into_iter();
        Some(Self {
            folder: descriptors.next()?,
            kernel: descriptors.next()?.into(),
            initramfs: descriptors.next()?.into(),
            base: descriptors.next()?.into(),
            taps: descriptors.collect(),
        })
    }
}

/// For reading its entries and for working in it; that it is the VM's own and no link is the supervisor's to see to.
fn open_folder(path: &Path) -> Result<OwnedFd, HandError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty());
    opened.map_err(|error| HandError::Folder { path: path.to_owned(), source: error.into() })
}

fn open_image(path: &Path) -> Result<File, HandError> {
    File::open(path).map_err(|source| HandError::Image { path: path.to_owned(), source })
}
